"""The models that are served, and those that are not any more but still have sessions."""

import re

from recurra_server.engine.errors import ModelNotFoundError, shown
from recurra_server.engine.served_model import ServedModel


class Shelf:
    """Versions of models by name; one that is replaced or removed is retired until its last session ends."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._retired: list[ServedModel] = []

    def add(self, model: ServedModel) -> None:
        """Serve a version; one that was served under the same name and version is retired."""
        versions = self._models.setdefault(model.name, {})
        if model.version in versions:
            self._retired.append(versions[model.version])
        versions[model.version] = model

    def remove(self, model: ServedModel) -> None:
        """Retire a version: no session is opened on it any more, and those that are open go on until they end."""
        versions = self._models[model.name]
        del versions[model.version]
        if not versions:
            del self._models[model.name]
        self._retired.append(model)

    def forget_retired(self) -> list[ServedModel]:
        """Forget the retired models that nobody uses any more, and tell which they were."""
        gone = [model for model in self._retired if not model.slots.in_use]
        self._retired = [model for model in self._retired if model.slots.in_use]
        return gone

    def served(self) -> list[ServedModel]:
        """All served versions, by name, the newest version first."""
        return [
            versions[version]
            for _, versions in sorted(self._models.items())
            for version in sorted(versions, key=version_key, reverse=True)
        ]

    def all(self) -> list[ServedModel]:
        """All served versions, and those that are retired and still have sessions."""
        return self.served() + self._retired

    def is_latest(self, model: ServedModel) -> bool:
        """Whether a session that names no version would get this one."""
        versions = self._models.get(model.name)
        return versions is not None and versions[max(versions, key=version_key)] is model

    def check(self, model: ServedModel) -> None:
        """Make sure that a model is not forgotten.

        Raises:
            ModelNotFoundError: It is.
        """
        if self._models.get(model.name, {}).get(model.version) is not model and model not in self._retired:
            raise ModelNotFoundError(
                f"model {model.name!r} version {model.version} is not served any more",
                model=model.name,
                version=model.version,
            )

    def find(self, name: str, version: str = "", digest: str = "") -> ServedModel:
        """Find a version of a model; without a version, the latest; with a digest, also one that is retired.

        Raises:
            ModelNotFoundError: It is not served.
        """
        if digest:
            return self._exactly(name, version, digest)
        versions = self._models.get(name)
        if versions is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFoundError(
                f"there is no model {shown(name)}; served are: {known}",
                model=name[:64],
                version=version[:64] or "latest",
            )
        if not version:
            return versions[max(versions, key=version_key)]
        if version not in versions:
            known = ", ".join(sorted(versions, key=version_key))
            raise ModelNotFoundError(
                f"model {name!r} has no version {shown(version)}; served are: {known}", model=name, version=version[:64]
            )
        return versions[version]

    def _exactly(self, name: str, version: str, digest: str) -> ServedModel:
        for model in self.all():
            if (model.name, model.digest) == (name, digest) and version in ("", model.version):
                return model
        raise ModelNotFoundError(
            f"there is no model {shown(name)} with the digest {shown(digest)} any more",
            model=name[:64],
            version=version[:64] or "latest",
        )


def version_key(version: str) -> list[tuple[int, str]]:
    """Sort versions with runs of digits as numbers: "10" after "9"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", version)]
