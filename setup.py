"Packaging for `maou_nb`: every value comes from `settings.ini`, the one config file of nbdev."
import shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

def words(key):
    "The space-separated words of setting `key`, none where it is missing"
    return shlex.split(cfg.get(key, ''))

extras = {name: words(f'{name}_requirements') for name in ('notebook', 's3', 'gcs', 'dask', 'onnx')}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    keywords=cfg['keywords'].split(), python_requires='>=' + cfg['min_python'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']), include_package_data=True, zip_safe=False,
    install_requires=words('requirements'),
    extras_require=extras | {'dev': sum(extras.values(), []) + words('dev_requirements')},
    # nbdev's doc links find a package's symbols through this entry point
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
