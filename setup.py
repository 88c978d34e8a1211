"Package metadata lives in settings.ini; this file only hands it to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser(delimiters=['='])
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
home = re.search(r'Repository = "(.*)"', Path('pyproject.toml').read_text())[1]
readme = Path('README.md').read_text(encoding='utf-8').replace('](README_files/', f']({home}/raw/main/README_files/').replace('](nbs/', f']({home}/blob/main/nbs/')

setup(
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme,   # on PyPI its pictures and pages are elsewhere
    long_description_content_type='text/markdown',
    author=cfg['author'],
    keywords=cfg['keywords'].split(),
    license_expression=cfg['license'],
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires=f">={cfg['min_python']}",
    packages=[cfg['lib_path']],
    include_package_data=True,
    install_requires=cfg['requirements'].split(),
    extras_require={o: cfg[f'{o}_requirements'].split() for o in ('dev', 'onnx')},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
