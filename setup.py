"Packaging for `maou_nb`: values come from `settings.ini`, and pyproject.toml says which."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_path']

def words(key):
    "The space-separated words of setting `key`, none where it is missing"
    return shlex.split(cfg.get(key, ''))

extras = {o: words(f'{o}_requirements') for o in ('notebook', 's3', 'gcs', 'dask', 'onnx', 'play', 'search')}
dev = sum(extras.values(), []) + words('dev_requirements')

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0',
    keywords=cfg['keywords'].split(),
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={f'{lib}.show': ['fonts/*'], f'{lib}.play': ['openings.usi'], f'{lib}.judge': ['exam-*.feather']}, zip_safe=False,
    install_requires=words('requirements'), extras_require=extras | {'dev': dev},
    # nbdev's doc links find a package's symbols through this entry point
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
