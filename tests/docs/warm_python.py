"""A `python` that has made its imports: a server that forks at each call.

A page starts a dozen tools, and each would import the toolboxes anew, for
longer than its work takes. As a script: `warm_python.py serve SOCKET`, and
`warm_python.py call SOCKET SCRIPT ARGUMENTS` for a call.
"""

import json
import os
import runpy
import socket
import sys
import traceback


def serve(address):
    # First: it serves the ops that mmcv-lite lacks.
    import evmamba_mm  # noqa: F401, I001
    import mmdet.apis
    import mmdet.datasets
    import mmdet.engine
    import mmdet.evaluation
    import mmdet.models  # noqa: F401
    import mmseg.apis
    import mmseg.datasets
    import mmseg.engine
    import mmseg.evaluation
    import mmseg.models  # noqa: F401

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            with connection:
                answer(connection)


def answer(connection):
    message, streams, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    call = json.loads(message)
    child = os.fork()
    if child == 0:
        os._exit(run(call, streams))
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(child, 0)
    connection.send(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))


def run(call, streams):
    """Runs a script as `python` does; returns its exit status."""
    for target, stream in enumerate(streams, start=1):
        os.dup2(stream, target)
    os.chdir(call['folder'])
    sys.argv = call['arguments']
    more = [os.path.abspath(path) for path in call['path'].split(os.pathsep)]
    sys.path[:1] = [os.path.dirname(os.path.realpath(sys.argv[0])), *more]
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
        status = 0
    except SystemExit as error:
        status = error.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def call(address, *arguments):
    path = os.environ['PYTHONPATH']
    message = json.dumps(
        dict(arguments=arguments, folder=os.getcwd(), path=path)
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        socket.send_fds(client, [message.encode()], [1, 2])
        # The server closes without a word if it dies.
        return (client.recv(1) or b'\x01')[0]


if __name__ == '__main__':
    action = dict(serve=serve, call=call)[sys.argv[1]]
    sys.exit(action(*sys.argv[2:]))
