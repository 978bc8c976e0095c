"""A `python` that has made its imports: a server that forks at each call.

The tests start many tools, and each would import the toolboxes anew, for
longer than its work takes. As a script: `warm_python.py serve SOCKET`, and
`warm_python.py call SOCKET SCRIPT ARGUMENTS` or
`warm_python.py call SOCKET -m MODULE ARGUMENTS` for a call.
"""

import functools
import gc
import importlib.util
import json
import os
import runpy
import shlex
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOSTS = ('mmdet', 'mmseg', 'mmpretrain')
PARTS = ('apis', 'datasets', 'engine', 'evaluation', 'models')


class WarmPython:
    """The server's process; leaving it ends the server.

    `path` is of a program that takes the place of `python`.
    """

    def __init__(self, folder):
        self.address, self.path = folder / 'server', folder / 'python'
        client = (sys.executable, '-IS', __file__, 'call', str(self.address))
        self.path.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        self.path.chmod(0o755)

    def __enter__(self):
        command = [sys.executable, __file__, 'serve', self.address]
        environment = dict(
            os.environ,
            CUDA_VISIBLE_DEVICES='',
            OMP_NUM_THREADS='1',
            PYTHONPATH=str(ROOT),
        )
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        while not self.address.exists():
            if self._process.poll() is not None:
                raise RuntimeError('the server of warm_python.py has ended')
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()


def serve(address):
    # First: it serves the ops that mmcv-lite lacks.
    import evmamba_mm  # noqa: I001
    import torch
    import torch._dynamo

    from tests.quick_hosts import hurry

    for host in filter(importlib.util.find_spec, HOSTS):
        for part in PARTS:
            importlib.import_module(f'{host}.{part}')
    hurry()
    # Numba reads its stored kernels.
    with torch.no_grad():
        evmamba_mm.EfficientVMamba('atto').eval()(torch.zeros(1, 3, 32, 32))
    # mmengine collects garbage for each data set: what is here is none.
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            with connection:
                answer(connection)


def answer(connection):
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
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
    os.environ.clear()
    os.environ.update(call['environment'])
    sys.argv = call['arguments']
    path = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    more = [os.path.abspath(folder) for folder in path]
    start = functools.partial(runpy.run_path, sys.argv[0])
    if sys.argv[0] == '-m':
        del sys.argv[0]
        start = functools.partial(
            runpy.run_module, sys.argv[0], alter_sys=True
        )
        more.insert(0, '')
    else:
        more.insert(0, os.path.dirname(os.path.realpath(sys.argv[0])))
    sys.path[:1] = more
    try:
        start(run_name='__main__')
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
    environment = dict(os.environ)
    message = json.dumps(
        dict(arguments=arguments, folder=os.getcwd(), environment=environment)
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        socket.send_fds(client, [message.encode()], [1, 2])
        # The server closes without a word if it dies.
        return (client.recv(1) or b'\x01')[0]


if __name__ == '__main__':
    action = dict(serve=serve, call=call)[sys.argv[1]]
    sys.exit(action(*sys.argv[2:]))
