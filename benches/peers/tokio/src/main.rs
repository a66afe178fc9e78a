//! An echo as it is written with tokio: a task for each connection, which copies until the end.

use std::io;

use tokio::net::TcpListener;

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).expect("an address to listen at");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    })
}
