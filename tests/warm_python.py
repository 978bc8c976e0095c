"""A `python` that has made its imports: a server that forks at each call.

The tests start many tools, and each would import the toolboxes anew, for
longer than its work takes. As a script: `warm_python.py serve SOCKET hosts`,
and `warm_python.py call SOCKET SCRIPT ARGUMENTS` for a call, or `-m MODULE`
or `-c CODE` in the place of the script. With `libraries` instead of `hosts`
it has imported neither a toolbox, nor mmengine, nor this package.
"""

import contextlib
import functools
import gc
import importlib.util
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITES = ('site-packages', 'dist-packages')
HOSTS = ('mmdet', 'mmseg', 'mmpretrain')
# What a caller hands on.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PARTS = ('apis', 'datasets', 'engine', 'evaluation', 'models')
# What the toolboxes import, and takes long.
LIBRARIES = (
    *('torch', 'torch._dynamo', 'torch.distributed.optim', 'torchvision'),
    *('cv2', 'matplotlib.pyplot', 'numba', 'rich.progress', 'scipy.stats'),
    *('scipy.optimize', 'sklearn.gaussian_process', 'yapf.yapflib.yapf_api'),
)


class WarmPython:
    """The server's process; leaving it ends the server.

    `path` is of a program that takes the place of `python`.
    """

    def __init__(self, folder, imports='hosts'):
        self.address, self.path = folder / 'server', folder / 'python'
        self._imports = imports
        client = (sys.executable, '-IS', __file__, 'call', str(self.address))
        self.path.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        self.path.chmod(0o755)

    def __enter__(self):
        command = [sys.executable, __file__, 'serve']
        command += [self.address, self._imports]
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


def import_hosts():
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


def import_libraries():
    for name in LIBRARIES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


def serve(address, imports):
    dict(hosts=import_hosts, libraries=import_libraries)[imports]()
    # mmengine collects garbage for each data set: what is here is none.
    gc.freeze()
    # Nobody waits for the processes that answer.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            # Several calls run at a time, as the processes of torchrun do.
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    answer(connection)
                    os._exit(0)


def answer(connection):
    """Runs the call, hands it the signals of the caller, tells its end."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    call = json.loads(message)
    child = os.fork()
    if child == 0:
        connection.close()
        os._exit(run(call, streams) & 0xFF)
    for stream in streams:
        os.close(stream)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([connection], [], [], 0.02)[0]:
            # A caller that is killed closes the connection.
            number = connection.recv(1) or bytes([signal.SIGKILL])
            os.kill(child, number[0])
    status = os.waitstatus_to_exitcode(ended[1])
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(status).encode())


def prepare(arguments):
    """Sets what a script finds in `sys`; returns the script's function."""
    sys.argv = arguments
    if sys.argv[0] == '-u':
        del sys.argv[0]
        sys.stdout.reconfigure(write_through=True)
    if sys.argv[0] == '-S':
        del sys.argv[0]
        sys.path[1:] = [x for x in sys.path[2:] if Path(x).name not in SITES]
    path = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    more = ['', *map(os.path.abspath, path)]
    if sys.argv[0] == '-m':
        del sys.argv[0]
        start = functools.partial(
            runpy.run_module, sys.argv[0], run_name='__main__', alter_sys=True
        )
    elif sys.argv[0] == '-c':
        sys.modules['__main__'] = types.ModuleType('__main__')
        names = vars(sys.modules['__main__'])
        start = functools.partial(exec, sys.argv.pop(1), names)
    else:
        more[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
        start = functools.partial(
            runpy.run_path, sys.argv[0], run_name='__main__'
        )
    sys.path[:1] = more
    return start


def run(call, streams):
    """Runs a script as `python` does; returns its exit status."""
    for target, stream in enumerate(streams, start=1):
        os.dup2(stream, target)
    os.chdir(call['folder'])
    os.environ.clear()
    os.environ.update(call['environment'])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = prepare(call['arguments'])
    try:
        start()
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
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda n, _: client.send(bytes([n])))
        # The server closes without a word if it dies.
        status = int(client.recv(8) or 1)
    if status < 0:
        if -status in SIGNALS:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == '__main__':
    action = dict(serve=serve, call=call)[sys.argv[1]]
    sys.exit(action(*sys.argv[2:]))
