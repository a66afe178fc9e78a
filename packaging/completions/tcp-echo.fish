# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_tcp_echo_global_optspecs
    string join \n config= listen= log= log-format= h/help V/version
end

function __fish_tcp_echo_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_tcp_echo_global_optspecs) -- $cmd 2>/dev/null
    or return 0
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_tcp_echo_using_subcommand
    set -l cmd (__fish_tcp_echo_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c tcp-echo -f
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand diff" -F
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -s V -l version -d 'Print version'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "serve" -d 'Echo whatever arrives (the default)'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "check" -d 'Read the configuration and print what it means, without serving'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "reload" -d 'Make the daemon ($MAINPID) reload, and report it to the service manager: for ExecReload='
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "drain" -d 'Answer health checks with drain, so that balancers send no more connections, until undrain'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "undrain" -d 'Answer health checks with ready again'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "probe" -d 'Judge the path to an echo server and the server, case by case'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "ping" -d 'Measure round trips to an echo server, and say what the cause is where there are none'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "diff" -d 'Compare two summaries that `ping --json` wrote'
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -l config-only -d 'Only read the files: open no socket, resolve no name, ask the kernel nothing'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -l json -d 'Print one JSON object instead of text'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand drain" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand drain" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand drain" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand drain" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand undrain" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand undrain" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand undrain" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand undrain" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand undrain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l only -d 'Do these cases or groups of cases alone, as in size,end/much' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l idle -d 'Find out for how long a connection may be silent, up to SPAN' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l hold -d 'Hold conversations for SPAN, and attribute each pause, instead of the cases' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l connections -d 'How many conversations are held' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l record -d 'Write the kernel\'s counters from before each pause to FILE, as lines of JSON' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l junit -d 'Write the report as XML of JUnit to FILE, too' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l html -d 'Write the report as a page with pictures to FILE, too' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -s W -l wait -d 'How long a handshake, or nothing at all, is waited for' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l seed -d 'Send the bytes of the run that had this seed, a hexadecimal number' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -s 4 -l ipv4 -d 'Connect to IPv4 addresses only'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -s 6 -l ipv6 -d 'Connect to IPv6 addresses only'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l list -d 'Print the cases and what they try, and connect to nothing'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l strict -d 'Count notes as faults'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l no-bulk -d 'Leave out the cases that send as much as they can'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l proxy-receiver -d 'Send a PROXY header before all else, and try what else a receiver of such must take'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l yes -d 'Do not ask before more than 100 MB are sent to an address that is not loopback'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -l json -d 'Print the report as one JSON object'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand probe" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s c -l count -d 'Stop after COUNT messages' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s i -l interval -d 'Send a message every SPAN [default: 1s]' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s w -l deadline -d 'Send nothing more after SPAN, and wait for the last echoes' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s W -l timeout -d 'Wait at most SPAN for a connection and for an echo' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s s -l size -d 'Send messages of SIZE bytes [default: 64, and 64KiB for --bulk]' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s I -l interface -d 'Come from an address of this host, or go through an interface' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l rate -d 'Send RATE messages a second, as in 500, 1k or 100k, or max: each as soon as there is room' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l connections -d 'Open COUNT connections, which take turns' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l depth -d 'Have at most COUNT messages under way on each connection [default: 1000, and 1 for --rate max]' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l svg -d 'Draw the distribution and the time line into FILE' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l hdr -d 'Write the percentiles into FILE, in the text form of HdrHistogram, in milliseconds' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l fail-if -d 'Fail with status 1 if this is so, as in \'p99>20ms\' or \'missing>0.1%\'; may be repeated' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s q -l quiet -d 'Print only the summary'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s 4 -l ipv4 -d 'Connect to IPv4 addresses only'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s 6 -l ipv6 -d 'Connect to IPv6 addresses only'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s D -l timestamps -d 'Print the time before each line, in seconds since 1970'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l busy -d 'Never sleep: more exact, and a whole processor'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l bulk -d 'Send as fast as there is room, and verify each byte that comes back [default: for 10s]'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l json -d 'Print the summary as JSON, an array for several targets'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l json-lines -d 'Print each event as a line of JSON, the summary last'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -l csv -d 'Print each event as a line of comma-separated values'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand ping" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand diff" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand diff" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand diff" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'No event; what keeps the daemon from starting is still printed'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand diff" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand diff" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "serve" -d 'Echo whatever arrives (the default)'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "check" -d 'Read the configuration and print what it means, without serving'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "reload" -d 'Make the daemon ($MAINPID) reload, and report it to the service manager: for ExecReload='
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "drain" -d 'Answer health checks with drain, so that balancers send no more connections, until undrain'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "undrain" -d 'Answer health checks with ready again'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "probe" -d 'Judge the path to an echo server and the server, case by case'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "ping" -d 'Measure round trips to an echo server, and say what the cause is where there are none'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "diff" -d 'Compare two summaries that `ping --json` wrote'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload drain undrain probe ping diff help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
