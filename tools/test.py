"Run every notebook and every test, and end with `N passed, N failed`.  Usage: python tools/test.py [--slow] [--cuda] [more of pytest]"
import argparse, os, subprocess, sys, tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
WORKERS = min(4, CPUS)
LIMIT = 600   # seconds, of one test


def environment(cache):
    "Ours, with the cores shared out, no downloads, no display and a folder of its own for decoded images"
    defaults = dict(OMP_NUM_THREADS=str(max(1, CPUS//WORKERS)), HF_HUB_OFFLINE='1', MPLBACKEND='Agg', PYTHONDONTWRITEBYTECODE='1',
                    GMML_CACHE=cache)
    return {**defaults, **os.environ}


def counts(xml):
    "How many tests ran to their end and passed, how many did not, and what was stopped by its limit; `xml` as pytest writes it"
    cases = list(ElementTree.parse(xml).iter('testcase')) if xml.exists() else []
    verdict = {id(c): next((o for o in c if o.tag in ('failure', 'error', 'skipped')), None) for c in cases}
    failed = [c for c in cases if verdict[id(c)] is not None and verdict[id(c)].tag != 'skipped']
    stopped = [f"{c.get('classname')}::{c.get('name')}" for c in failed if 'Timeout' in (verdict[id(c)].get('message') or '')]
    return sum(v is None for v in verdict.values()), len(failed), stopped


def main():
    p = argparse.ArgumentParser(description='Run every notebook and every test')
    for o in 'slow', 'cuda': p.add_argument(f'--{o}', action='store_true', help=f'run cells marked `#| {o}` too')
    args,more = p.parse_known_args()
    flags = [f'--{k}' for k,v in vars(args).items() if v]
    with tempfile.TemporaryDirectory() as d:
        xml = Path(d)/'pytest.xml'
        cmd = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-n', str(WORKERS), '--dist', 'loadscope', f'--timeout={LIMIT}',
               '--durations=15', f'--junitxml={xml}', *flags, *more, 'tests']
        rc = subprocess.run(cmd, cwd=ROOT, env=environment(d), stdin=subprocess.DEVNULL).returncode
        passed,failed,stopped = counts(xml)
    for o in stopped: print(f'stopped after {LIMIT} s: {o}')
    if rc and not failed:   # pytest itself was stopped, or found no tests
        print(f'pytest ended with status {rc} before its end: the count is of the tests that ran')
        failed = 1
    if file := os.environ.get('GMML_TEST_COUNTS'): Path(file).write_text(f'{passed} {failed}\n')
    else: print(f'{passed} passed, {failed} failed')
    return failed > 0


if __name__ == '__main__': sys.exit(main())
