"""Files are read in a few places alone, each of which refuses pipes and devices and reads within a limit."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import paramerge

ROOTS = {
    "paramerge": Path(paramerge.__file__).parent,
    "cli": Path(paramerge.__file__).parents[1] / "cli",
    "training": Path(paramerge.__file__).parents[1] / "training",
}

NAMES = {"open", "safe_open", "load_file"}
METHODS = {"open", "read_text", "read_bytes", "fdopen", "from_pretrained", "from_single_file"}
OF_MODULES = {
    *((module, name) for module in ("tomllib", "json") for name in ("load", "loads")),
    *(("np", name) for name in ("load", "loadtxt", "fromfile", "memmap")),
    ("torch", "load"),
}
OWN = {"Source", "blocks", "values", "layer", "tensor"}
"""What has a method ``open`` of its own that is one of the places below, or opens no file."""

CODES = "paramerge/storage/"
"""A room whose tensors, of files that are open, have a ``read_bytes`` of their own."""

PLACES = {
    # the readers themselves
    "paramerge/regular_files.py": "os.fdopen",
    "paramerge/strict_toml.py": "tomllib.loads",
    "paramerge/files/source.py": "os.open",
    # what the program wrote itself, in a folder that is its own
    "paramerge/bake/bake.py": "os.open",
    "paramerge/bake/output.py": "open",
    "paramerge/files/staging.py": "path.open",
    "paramerge/files/stages.py": "os.open",
    "paramerge/files/hashing.py": "os.open",
    "paramerge/files/writer.py": "os.open",
    "paramerge/files/positioned.py": "os.open",
    "paramerge/files/system_calls.py": "os.open",
    "cli/ending.py": "os.open",
    "training/experiments/adapted.py": "load_file PeftConfig.from_pretrained",
    "training/experiments/trained.py": "safe_open json.loads",
    # of installed packages, or of this one
    "paramerge/plugins.py": "open",
    "paramerge/compare/report.py": "(files(__package__)/'report.html').read_text",
    "training/evaluation/stlpips.py": "torch.load",
    "training/tiny/packages.py": "open tarfile.open archive.read_bytes",
    "training/tiny/adapters.py": "file.read_bytes",
    "training/kept.py": "path.read_bytes",
    "training/loading.py": "getattr(diffusers,str(name)).from_pretrained",
    "training/autoencoder.py": "kind.from_single_file kind.from_pretrained",
    "training/tiny/pictures.py": "Image.open",
    # of an open file: tensors, texts made a line above, streams of open_regular
    "paramerge/extract/difference.py": "tensors.read_bytes one.read_bytes other.read_bytes",
    "paramerge/convert/writing.py": "json.loads",
    "paramerge/verify/making.py": "json.loads",
    "training/evaluation/records.py": "json.loads",
    "training/experiments/run.py": "json.loads",
    "training/pictures.py": "Image.open os.fdopen",
    "training/evaluation/sets.py": "Image.open",
    # libraries that get a folder, whose files were looked at before
    "paramerge/generation/loading.py": "diffusers.DiffusionPipeline.from_pretrained "
    "pipeline.from_single_file AutoencoderKL.from_single_file",
    "paramerge/generation/small_files.py": "tokenizer.from_pretrained",
    "training/evaluation/clip.py": "transformers.CLIPModel.from_pretrained "
    "transformers.AutoTokenizer.from_pretrained transformers.AutoImageProcessor.from_pretrained",
}
"""By file, the calls there that open a file or parse one's text.

A file that people name is read by ``Source`` (safetensors), ``read_whole`` or ``read_text`` of
``regular_files``, ``strict_json.read_object`` or ``strict_toml.read_toml``.
"""


def calls() -> Iterator[tuple[str, str]]:
    """Each call of the package that may open a file, with its place."""
    for root, folder in ROOTS.items():
        for path in folder.rglob("*.py"):
            place = f"{root}/{path.relative_to(folder).as_posix()}"
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or (name := opening(node.func)) is None:
                    continue
                if not (place.startswith(CODES) and name.endswith(".read_bytes")):
                    yield place, name


def opening(function: ast.expr) -> str | None:
    """The call's name, without what its parts are called with, if it may open a file."""
    if isinstance(function, ast.Name):
        return function.id if function.id in NAMES else None
    if not isinstance(function, ast.Attribute):
        return None
    whole = ast.unparse(function)
    owner, _, method = whole.rpartition(".")
    owner = owner.partition("[")[0] if method == "read_bytes" else owner
    last = owner.rpartition(".")[2]
    if (last, method) in OF_MODULES or (method in METHODS and last not in OWN):
        return f"{owner}.{method}".replace(" ", "")
    return None


def test_files_are_opened_in_known_places_alone() -> None:
    found = {call for call in calls() if not call[1].startswith("self.")}
    known = {(place, name) for place, names in PLACES.items() for name in names.split()}
    assert not found - known, "read it by Source, read_whole, read_text, read_object or read_toml"
    assert not known - found, "these are gone: take them off the list"
