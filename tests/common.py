"What several tests need"
import os, signal, socket, sys, traceback
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(ROOT).parts))
NAMES = [p.relative_to(ROOT/'nbs').as_posix() for p in NOTEBOOKS]


def settings():
    "settings.ini, as setup.py reads it"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def child(f, **env):
    "Run `f` in a copy of this process; its number"
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        os.environ.update(env)
        sys.stdout = open(os.devnull, 'w')
        f()
        code = 0
    except BaseException: traceback.print_exc()
    finally: os._exit(code)

def code(pid):
    "How a child has ended; one that is not waited for any longer ends at once"
    try: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise

def ranks(f, n=2):
    "`f` in `n` processes that train together; their numbers"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = dict(WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    return [child(f, RANK=str(i), LOCAL_RANK=str(i), **env) for i in range(n)]

def dies_of_a_worker(f):
    "Does `f`, in a copy of this process, end with torch's error about a killed worker? torch raises it from a signal handler, anywhere and more than once"
    def run():
        try: f()
        except RuntimeError as e: os._exit(7 if 'worker' in str(e) else 1)
    return code(child(run)) == 7
