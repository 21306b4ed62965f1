"""Hand the [package] section of settings.ini to setuptools; there is no other copy of these facts."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(interpolation=None, delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
package = ini["package"]


def lines(key):
    return [line.strip() for line in package.get(key, "").splitlines() if line.strip()]


name = package["import_name"]
setup(
    name=package["name"],
    version=package["version"],
    description=package["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=package["author"],
    license_expression=package["license"],
    python_requires=package["python"],
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: ["py.typed", "templates/**/*", "templates/**/.*"]},
    install_requires=lines("requires.serving") + lines("requires.running"),
    extras_require={key.partition(".")[2]: lines(key) for key in package if key.startswith("extras.")},
    entry_points={
        "console_scripts": lines("console_scripts"),
        "papermill.engine": lines("papermill.engine"),
    },
)
