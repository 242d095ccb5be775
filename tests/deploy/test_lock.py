"""The image's Python packages are those of the lock, each by its hash, and are what the project asks for."""

import re
from importlib.metadata import requires

import yaml
from packaging.requirements import Requirement

from tests.deploy.promql import ROOT
from tests.support.attacks import Attack

LOCK = ROOT / "deploy" / "lock"


def locked(name: str) -> dict[str, str]:
    """The versions in a lock; each must have a hash."""
    versions = {}
    for entry in re.sub(r"\\\n\s*", " ", (LOCK / name).read_text()).splitlines():
        if entry and not entry.startswith("#"):
            requirement, *hashes = entry.split(" --hash=sha256:")
            assert hashes, entry
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest.strip()) for digest in hashes)
            package, _, version = requirement.split(";")[0].strip().partition("==")
            versions[package.lower()] = version
    return versions


def test_the_lock_has_what_the_server_needs_and_nothing_of_training(attack: Attack) -> None:
    versions = locked("server.txt")
    for text in requires("recurra") or ():
        requirement = Requirement(text)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": "server"})
        if needed:
            assert requirement.specifier.contains(versions[requirement.name.lower()]), text
    assert "torch" not in versions
    assert "hatchling" in locked("build.txt")
    attack("image", "a package that is another than when the lock was made", "not installed: its hash is another")


def test_the_image_takes_only_what_is_locked(attack: Attack) -> None:
    build, final = (ROOT / "deploy" / "docker" / "Dockerfile").read_text().rsplit("FROM ", 1)
    for command in re.findall(r"pip install ([^&\n]*)", build):
        assert "--require-hashes" in command or "--no-deps" in command
    assert not re.search(r"^(RUN|CMD|ENTRYPOINT) (?!\[|useradd)", final, re.MULTILINE), (
        "nothing that needs a shell to run"
    )
    attack("image", "a package that is not in deploy/lock", "not installed")


def test_ci_lists_the_packages_and_looks_for_holes_in_them(attack: Attack) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    run = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert {"make audit", "make sbom"} <= run
    makefile = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^(audit|sbom):.*\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    assert all("deploy/lock/server.txt" in recipe for recipe in recipes.values())
    assert "--require-hashes" in recipes["audit"], "so it looks at what is installed"
    (kept,) = [step for step in jobs["packages"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert kept["with"]["path"] in recipes["sbom"]
    attack("image", "a package with a known hole", "looked for by CI (pip-audit)")
