"What several tests need"
import sys
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
