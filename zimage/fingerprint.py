"""One hash per stage of all project code behind it, so that a stage is stale when its code means something else.

A comment, a docstring or a line break changes no hash; a statement in any module that a stage imports, however far
down, changes the stage's. The modules are found by reading import statements, never by importing.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from zimage.signatures import STAGES

PACKAGE = Path(__file__).parent
DEMO_PHOTOS = {"photos": "zimage.demo"}  # the stage of data/dvc.yaml: the demo subject's photos are made, not taken
ENTRIES = {**{stage: f"zimage.stages.{stage}" for stage in STAGES}, **DEMO_PHOTOS}
# Such a folder is a base model; its files count through `base.identity`, for the stages that read them.
MARK_OF_A_BASE = "model_index.json"


def fingerprints(package: Path = PACKAGE) -> dict[str, str]:
    """Return `sha256:<hex>` for each stage, and for the demo's photos, in pipeline order."""
    return {stage: fingerprint(module, package) for stage, module in ENTRIES.items()}


def fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return `sha256:<hex>` of the code and the package data that importing `module` can reach in `package`.

    Args:
        module: Dotted name, for example `zimage.stages.train`.
        package: The folder of the top-level package, whose name begins all dotted names.
    """
    sources = reached(module, package)
    folders = {source.parent for source in sources}
    digests = {source: _hash_of_code(source) for source in sources}
    digests |= {file: _hash(file.read_bytes()) for folder in folders for file in _data_of(folder)}
    lines = [f"{path.relative_to(package).as_posix()} {digest}\n" for path, digest in digests.items()]
    return f"sha256:{_hash(''.join(sorted(lines)).encode())}"


def reached(module: str, package: Path = PACKAGE) -> set[Path]:
    """Return the source files in `package` that are executed when `module` is imported and used."""
    found: set[Path] = set()
    waiting = list(_sources_of(module, package))
    assert any(_dotted(source, package) == module for source in waiting), f"there is no module {module}"
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            waiting += [path for name in _names_in(source, package) for path in _sources_of(name, package)]
    return found


def as_yaml(hashes: dict[str, str]) -> str:
    """Return the text of code.yaml."""
    lines = [f"{stage}: {value}\n" for stage, value in hashes.items()]
    return "# Written by `make fingerprints`: what the code of each stage means. Do not edit.\n" + "".join(lines)


def _sources_of(name: str, package: Path) -> Iterator[Path]:
    """Yield the files that importing the dotted `name` executes: each package on the way, and the module itself."""
    parts = name.split(".")
    if parts[0] != package.name:
        return
    for depth in range(len(parts)):
        path = package.joinpath(*parts[1 : depth + 1])
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                yield candidate


def _dotted(source: Path, package: Path) -> str:
    parts = source.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _names_in(source: Path, package: Path) -> Iterator[str]:
    """Yield every dotted name that `source` may import, also inside functions and by `import_module("zimage…")`."""
    for node in _walk(ast.parse(source.read_bytes())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(origin), names=names, level=0):
                yield from (f"{origin}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise SyntaxError(f"{source}:{node.lineno}: relative import; this project imports by full names")
            case ast.Constant(value=str(text)) if text.startswith(f"{package.name}."):
                yield text


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below `node` but for what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from _below(child.orelse)
        else:
            yield child
            yield from _walk(child)


def _below(statements: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    for statement in statements:
        yield statement
        yield from _walk(statement)


def _data_of(folder: Path) -> Iterator[Path]:
    """Yield the files beside and below a package's modules that are neither Python nor a base model's."""
    for path in folder.iterdir():
        if path.is_dir() and not (path / "__init__.py").exists() and not (path / MARK_OF_A_BASE).exists():
            yield from _data_of(path)
        elif path.is_file() and path.suffix not in {".py", ".pyc"} and not path.name.startswith("."):
            yield path


class _WithoutText(ast.NodeTransformer):
    """Drops statements that are only a string: docstrings of modules, classes, functions and fields."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Return None for a bare string, else the node as it is."""
        bare = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if bare else node


def _hash_of_code(source: Path) -> str:
    tree = _WithoutText().visit(ast.parse(source.read_bytes()))
    return _hash(ast.dump(tree).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
