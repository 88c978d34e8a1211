"Run every notebook, then pytest, and end with `N passed, N failed`.  Usage: python tools/test.py [--slow] [--cuda]"
import argparse, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree
from nbdev.doclinks import nbglob

ROOT = Path(__file__).resolve().parents[1]
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
WORKERS = min(4, CPUS)
FRESH = 'tutorials', 'paper'   # tests/test_fresh_kernel.py runs these
CACHE = tempfile.TemporaryDirectory(prefix='gmml_cache_')   # of images, removed at the end


def environment():
    "Ours, with the cores shared out, no downloads and no display"
    defaults = dict(OMP_NUM_THREADS=str(max(1, CPUS//WORKERS)), HF_HUB_OFFLINE='1', MPLBACKEND='Agg', PYTHONDONTWRITEBYTECODE='1',
                    GMML_CACHE=CACHE.name)
    return {**defaults, **os.environ}


def call(cmd, timeout, **kwargs):
    "Exit status and output of `cmd`; status 124 when it took longer than `timeout` seconds"
    try: r = subprocess.run([str(o) for o in cmd], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, timeout=timeout, text=True, **kwargs)
    except subprocess.TimeoutExpired as e:
        out = e.stdout or ''
        return 124, (out.decode(errors='replace') if isinstance(out, bytes) else out) + f'\nstopped after {timeout} s'
    return r.returncode, r.stdout or ''


def run_notebook(path, flags=''):
    "Run a notebook in a process of its own: whether it passed"
    start = time.time()
    flags = ['--flags', flags] if flags else []
    rc, out = call([Path(sys.executable).with_name('nbdev-test'), '--n-workers', '0', *flags, path], 600,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ok = rc == 0 and 'Success.' in out
    print(f"{'' if ok else out}{'passed' if ok else 'FAILED'} {path.relative_to(ROOT)} ({time.time()-start:.0f} s)", flush=True)
    return ok


def run_pytest():
    "Run tests/: how many passed, and how many failed"
    with tempfile.TemporaryDirectory() as d:
        xml = Path(d)/'pytest.xml'
        rc, _ = call([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={xml}', 'tests'], 1200)
        suites = list(ElementTree.parse(xml).iter('testsuite')) if xml.exists() else []
    n = {k: sum(int(s.get(k, 0)) for s in suites) for k in ('tests', 'failures', 'errors', 'skipped')}
    failed = n['failures'] + n['errors']
    if rc and not failed: failed = 1   # stopped, or found no tests
    return max(0, n['tests'] - n['failures'] - n['errors'] - n['skipped']), failed


def main():
    p = argparse.ArgumentParser(description='Run every notebook, then pytest')
    for o in 'slow', 'cuda': p.add_argument(f'--{o}', action='store_true', help=f'run cells marked `#| {o}` too')
    args = p.parse_args()
    os.chdir(ROOT)
    sys.stdout.reconfigure(line_buffering=True)
    notebooks = [f.resolve() for f in nbglob(as_path=True) if f.parent.name not in FRESH]
    if not notebooks: print('FAILED: no notebook found in nbs/')
    flags = ' '.join(k for k,v in vars(args).items() if v)
    with ThreadPoolExecutor(WORKERS) as ex: ok = list(ex.map(lambda f: run_notebook(f, flags), sorted(notebooks)))
    passed, failed = run_pytest()
    bad = [str(f.relative_to(ROOT)) for f,o in zip(sorted(notebooks), ok) if not o]
    if bad: print('Notebooks that failed:', *bad)
    passed, failed = passed + sum(ok), failed + len(bad) + (not notebooks)
    if counts := os.environ.get('GMML_TEST_COUNTS'): Path(counts).write_text(f'{passed} {failed}\n')
    else: print(f'{passed} passed, {failed} failed')
    return failed > 0


if __name__ == '__main__': sys.exit(main())
