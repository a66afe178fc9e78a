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
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'Nothing is logged'
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
complete -c tcp-echo -n "__fish_tcp_echo_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -l config -d 'Read FILE and FILE.d/*.toml [default: /etc/tcp-echo/config.toml, which may be absent] [env: TCP_ECHO_CONFIG]' -r -F
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -l listen -d 'Listen on ADDRESS, as in 127.0.0.1:9999, [::1]:9999, *:7, localhost:0, unix:/run/echo.sock; may be repeated; replaces the listeners of the configuration' -r
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand serve" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'Nothing is logged'
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
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand check" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'Nothing is logged'
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
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -l log -d 'Log events of at least this level [default: info]' -r -f -a "off\t'Nothing is logged'
error\t'The service cannot do what it should'
warn\t'Something needs attention'
info\t'The life of the service, and the end of each connection'
debug\t'Also the beginning of each connection'
trace\t'Also each turn of a connection'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -l log-format -d 'Log in this form [default: auto]' -r -f -a "auto\t'To the journal when standard error is connected to it, else as text'
text\t'As lines of text on standard error'
json\t'As one JSON object a line on standard error'"
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload help" -f -a "serve" -d 'Echo whatever arrives (the default)'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload help" -f -a "check" -d 'Read the configuration and print what it means, without serving'
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload help" -f -a "reload" -d 'Make the daemon ($MAINPID) reload, and report it to the service manager: for ExecReload='
complete -c tcp-echo -n "__fish_tcp_echo_using_subcommand help; and not __fish_seen_subcommand_from serve check reload help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
