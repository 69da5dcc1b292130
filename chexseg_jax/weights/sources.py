"""Find weights by name: a file, `hf://OWNER/NAME[@REVISION]` of the Hugging Face Hub, or `imagenet`.

Of the Hub only `model.safetensors` is read, with the `config.json` beside it, which states timm's
normalization. The package huggingface_hub fetches and caches it, and honours its environment variables:
`HF_HUB_OFFLINE=1` uses the cache alone, `HF_HOME` moves it, `HF_ENDPOINT` names a mirror.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from chexseg_jax.models.spec import DENSENET121, RESNET18, RESNET50, BackboneSpec
from chexseg_jax.runtime.stage_folder import digest_file
from chexseg_jax.weights.convert import WeightsError

IMAGENET_SOURCES: Final = {
    DENSENET121: "hf://timm/densenet121.tv_in1k",
    RESNET18: "hf://timm/resnet18.tv_in1k",
    RESNET50: "hf://timm/resnet50.tv_in1k",
}
"""torchvision's ImageNet weights, which the paper's networks start from."""


@dataclass(frozen=True)
class WeightsFile:
    """A local file of weights and where it came from.

    Attributes:
        path: the file.
        source: the Hub's name for it, or its path.
        revision: the Hub's commit; None for a file of one's own.
        sha256: of its content.
    """

    path: Path
    source: str
    revision: str | None
    sha256: str

    @property
    def origin(self) -> dict[str, str | None]:
        """Return what a manifest says of it."""
        return {"source": self.source, "revision": self.revision, "sha256": self.sha256}


def find_weights(source: str | Path, backbone: BackboneSpec) -> WeightsFile:
    """Return the file of a source, fetched if it is the Hub's.

    Args:
        source: a path, `hf://OWNER/NAME[@REVISION]`, or `imagenet`.
        backbone: the network that `imagenet` is for.

    Raises:
        WeightsError: the Hub cannot give it, or there are no such weights for the network.
        OSError: the file cannot be read.
    """
    name = str(source)
    if name == "imagenet":
        if backbone not in IMAGENET_SOURCES:
            raise WeightsError(
                "imagenet: there are such weights for DenseNet-121, ResNet-18 and ResNet-50, not for "
                "this network; leave the flag out, or name a file"
            )
        name = IMAGENET_SOURCES[backbone]
    path, revision = _fetch(name) if name.startswith("hf://") else (Path(name), None)
    return WeightsFile(path, name, revision, digest_file(path))


@cache  # a branch may move while a run lasts
def _fetch(name: str) -> tuple[Path, str]:
    """Return the local path of a repository's weights, and the commit that they are of."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([^@\s]+))?", name)
    if match is None:
        raise WeightsError(
            f"{name}: a name on the Hub is hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    repository, revision = match.groups()
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise WeightsError(f"{name} needs a package: pip install 'chexseg-jax[hub]'") from None
    try:
        path = Path(hf_hub_download(repository, "model.safetensors", revision=revision))
        commit = path.parent.name  # of the cache's folder `snapshots`
        with suppress(EntryNotFoundError):
            hf_hub_download(repository, "config.json", revision=commit)
    except LocalEntryNotFoundError:
        raise WeightsError(
            f"{name} is not in the cache and cannot be fetched now; fetch it once online with "
            f"`hf download {repository} model.safetensors config.json`, or name a file"
        ) from None
    except EntryNotFoundError:
        raise WeightsError(
            f"{name} has no model.safetensors, the only kind that is fetched; name another repository, "
            "or download its file and name that"
        ) from None
    except Exception as error:  # of httpx, of huggingface_hub, of Xet: no common class
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{name} cannot be fetched: {type(error).__name__}: {reason:.300}"
        ) from None
    return path, commit
