"""Writes the container image's software bill of materials (SBOM): CycloneDX 1.6 in JSON.

    python -m container.sbom --lock requirements/runtime.txt --packages /packages --root /rootfs --output FILE

Its components are the installed packages (those left out of the image have the scope `excluded`), the interpreter, and
the Debian packages whose libraries were copied. Wheels list what they bundle in SBOMs of their own, which stay in their
`.dist-info/sboms`; pi-heif's has none, so its libraries are components here. The same input gives the same bytes.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from container.rules import LEFT_OUT_DISTRIBUTIONS

NAME: Final = "densenet-server"
_LICENCES: Final = LicenseFactory()
# SPDX identifiers of licences that packages describe in other words.
_SPDX: Final = {"MIT License": "MIT", "Apache 2.0": "Apache-2.0", "3-Clause BSD License": "BSD-3-Clause"}


class SbomError(Exception):
    """The SBOM cannot be made, or would be wrong; the message says why."""


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m container.sbom", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lock", type=Path, required=True, help="lock file of the installed packages")
    parser.add_argument("--packages", type=Path, required=True, help="folder that pip installed into with --target")
    parser.add_argument("--root", type=Path, required=True, help="root file system that container.assemble made")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    try:
        text = write(list(components(options.lock, options.packages, options.root)))
    except SbomError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    return 0


def components(lock: Path, packages: Path, root: Path) -> Iterator[Component]:
    """Yields everything in the image except for the project's own files.

    Raises:
        SbomError: an installed version is not the locked one, or a Debian package is unknown.
    """
    locked = dict(re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    for distribution in sorted(distributions(path=[str(packages)]), key=lambda each: each.name):
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        if locked.get(name) != distribution.version:
            raise SbomError(f"{name} {distribution.version} is installed, but {lock} has {locked.get(name)}")
        yield _component(
            name,
            distribution.version,
            PackageURL("pypi", name=name, version=distribution.version),
            licence=_licence(distribution),
            scope=ComponentScope.EXCLUDED if name in LEFT_OUT_DISTRIBUTIONS else ComponentScope.REQUIRED,
        )
        if name == "pi-heif":
            yield from _heif_libraries(packages)
    version = platform.python_version()
    yield _component(
        "cpython",
        version,
        PackageURL("generic", name="cpython", version=version),
        licence="PSF-2.0",
        cpe=f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
    )
    release = platform.freedesktop_os_release()
    for path in sorted(root.glob("usr/share/doc/*/copyright")):
        name = path.parent.name
        version, architecture = _dpkg(name).split()
        qualifiers = {"arch": architecture, "distro": f"{release['ID']}-{release.get('VERSION_ID', 'unstable')}"}
        yield _component(name, version, PackageURL("deb", release["ID"], name, version, qualifiers))


def _heif_libraries(packages: Path) -> Iterator[Component]:
    """Yields the libraries that pi-heif's wheel bundles, with the versions that they report."""
    code = (
        "import pi_heif; about = pi_heif.libheif_info(); "
        "print(about['libheif'], about['decoders']['libde265'].split()[-1])"
    )
    command = [sys.executable, "-c", code]
    report = subprocess.run(command, env={"PYTHONPATH": str(packages)}, capture_output=True, text=True, check=False)
    if report.returncode:
        raise SbomError(f"pi-heif does not name the versions of its libraries: {report.stderr.strip()}")
    for name, version in zip(("libheif", "libde265"), report.stdout.split(), strict=True):
        purl = PackageURL("github", "strukturag", name, f"v{version}")
        yield _component(name, version, purl, licence="LGPL-3.0-or-later")


def write(parts: list[Component]) -> str:
    """Returns the document.

    Raises:
        SbomError: it does not conform to CycloneDX's schema.
    """
    bom = Bom(components=parts)
    bom.metadata.component = Component(type=ComponentType.APPLICATION, name=NAME, bom_ref=NAME)
    bom.register_dependency(bom.metadata.component, [part for part in parts if part.scope != ComponentScope.EXCLUDED])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["serialNumber"], document["metadata"]["timestamp"]  # different in every build
    text = json.dumps(document, indent=1) + "\n"
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        raise SbomError(f"not valid CycloneDX: {error}")
    return text


def _component(
    name: str,
    version: str,
    purl: PackageURL,
    licence: str | None = None,
    scope: ComponentScope = ComponentScope.REQUIRED,
    cpe: str | None = None,
) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        purl=purl,
        bom_ref=str(purl),
        scope=scope,
        licenses=[_LICENCES.make_from_string(licence)] if licence else None,
        cpe=cpe,
    )


def _licence(distribution: Distribution) -> str | None:
    metadata = distribution.metadata
    said = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), None)
    return _SPDX.get(said, said) if said else None


def _dpkg(package: str) -> str:
    query = ["dpkg-query", "-W", "-f", "${Version} ${Architecture}", package]
    report = subprocess.run(query, capture_output=True, text=True, check=False)
    if report.returncode:
        raise SbomError(f"the base image does not know its package {package}: {report.stderr.strip()}")
    return report.stdout


if __name__ == "__main__":
    sys.exit(main())
