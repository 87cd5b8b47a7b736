"""Data files as tables of `datasets`, memory-mapped: Parquet, Arrow, JSON, tar shards, and data sets of the hub."""

import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cal_cli.runtime.errors import InputError

KINDS = (".parquet", ".tar", ".jsonl", ".json", ".arrow")
BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}  # of `datasets`; JSON and tar shards are read below
DESCRIPTION = re.compile(r"(.*_stats|dataset_(infos?|dict)|state)\.json")  # of a data set, beside its rows
HELD_OUT = ("val", "validation", "dev")  # names of the same split
MEMBER = re.compile(r"((?:.*/)?[^./][^/.]*)\.([^/]+)")  # of a tar shard: the sample's key and the name of a column
IMAGE_SUFFIX = re.compile(r"(?:.*\.)?(jpe?g|png|webp|gif|bmp|tiff?|jp2|ppm|avif)")
UNREAD = ("heic", "heif", "jxl", "svg")  # formats of images that Pillow does not open
# columns of conversations; the first that exists is used
TALKS = ("conversations", "messages", "texts", "json", "caption", "txt", "text")


def load_table(
    path: str,
    name: str | None,
    split: str,
    files: Sequence[Path] | None = None,
    revision: str | None = None,
    key: str = "data",
) -> Any:
    """Load a data set without decoding its images.

    Values of JSON are what `json` reads: a text that looks like a date stays a text, and a whole number has no `.0`.

    Args:
        path: a file, a folder or a hub id.
        name: the configuration, of several.
        split: such as `train` or `train[:1000]`.
        files: the files to read, of a folder; None means those of `find_split_files`.
        revision: on the hub.
        key: config key, for messages.

    Raises InputError if it cannot be loaded, or has files of several kinds.
    """
    import datasets  # takes seconds, so only where it is needed

    files = find_split_files(path, name, split, key) if files is None else files
    if not files and Path(path).exists():
        raise make_missing_error(path, split, key)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # a failure is reported once, below
    try:
        table = (
            _load_files(datasets, files, split)
            if files
            else datasets.load_dataset(path, name, split=split, revision=revision)
        )
    except Exception as error:  # any failure of a builder
        problem = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        if files:
            raise InputError(f"{key}.path={path}: cannot be read: {problem}") from error
        raise InputError(
            f"{key}.path={path}: neither a file or folder nor a data set of the hub or its cache ({problem}): run "
            f"`hf download --repo-type dataset {path} --local-dir {Path(path).name}` on a machine with network access, "
            f"and give {key}.path={Path(path).name}, a folder with .parquet files, or .json files and their images"
        ) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
    if table.info.builder_name == "json" and "timestamp" in str(table.data.schema):
        raise InputError(
            f"{key}.path={path}: `datasets` reads some of its texts as dates and would change them: run `hf download "
            f"--repo-type dataset {path} --local-dir {Path(path).name}` and give {key}.path={Path(path).name}"
        )
    plain = datasets.Image(decode=False)
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, plain)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(column, datasets.List(plain))
    return table


def make_missing_error(path: str, split: str, key: str) -> InputError:
    """Make the error of a path without a data file of a split, which names files of other splits."""
    others = ", ".join(file.name for file in find_files(path, key)[:3])
    advice = f" of the split {split}: give {key}.split=, or the path of a file, such as {others}" if others else ""
    return InputError(f"{key}.path={path}: contains no {', '.join(KINDS)} file{advice}")


def find_files(path: str, key: str = "data") -> list[Path]:
    """Find the data files of a path, sorted by name, without hidden files and descriptions of a data set.

    Metadata beside a tar shard of the same name, as img2dataset writes them, belong to the shard.

    Raises InputError if a folder has files of several kinds.
    """
    folder = Path(path)
    if folder.is_file():
        return [folder] if folder.suffix in KINDS else []
    files = [
        file
        for file in sorted(folder.rglob("*") if folder.is_dir() else ())
        if file.suffix in KINDS
        and file.is_file()
        and not DESCRIPTION.fullmatch(file.name)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    shards = {file.with_suffix("") for file in files if file.suffix == ".tar"}
    files = [file for file in files if file.suffix == ".tar" or file.with_suffix("") not in shards]
    first = {file.suffix: file for file in reversed(files)}
    if len(first) > 1:
        examples = ", ".join(str(file.relative_to(folder)) for _, file in sorted(first.items()))
        raise InputError(
            f"{key}.path={path}: has data files of several kinds ({examples}), and only one of them can be meant: give "
            "the path of a file, or of a folder with one kind"
        )
    return files


def find_split_files(path: str, name: str | None, split: str, key: str = "data") -> list[Path]:
    """Find the data files of a path that belong to a configuration and a split, by their names; see `find_files`.

    Names in the hub's format (`test-00000-of-00002.parquet`) must contain the split, and so must other names if they
    contain one at all; `val`, `validation` and `dev` are equal. A path to a single file is used as it is.
    """

    def select(words: Sequence[str], files: list[Path]) -> list[Path]:
        pattern = re.compile(rf"(^|\W|_)({'|'.join(map(re.escape, words))})(\W|_|$)")
        return [file for file in files if pattern.search(str(file.relative_to(path)))]

    files, split = find_files(path, key), split.partition("[")[0]
    if Path(path).is_file():
        return files
    if name is not None:
        files = select([name], files) or files
    of_split = select([split], files) or select(HELD_OUT if split in HELD_OUT else [split], files)
    others = select(["train", "test", *HELD_OUT], files)
    return of_split or [file for file in files if file not in others and not re.search(r"-\d+-of-\d+", file.name)]


def describe_split(path: str, name: str | None, split: str) -> list[str]:
    """Describe that not all data files of a path are read, in a sentence; none if they are. See `find_split_files`."""
    chosen, files = find_split_files(path, name, split), find_files(path)
    return [f"{len(chosen)} of {len(files)} files are read, those of the split {split}"] if chosen != files else []


def get_folder(path: str) -> Path:
    """Return the folder that image names are relative to by default."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _load_files(datasets: Any, files: Sequence[Path], split: str) -> Any:
    """Load files of one kind as a table, or the slice of it that `split` asks for, such as `train[:1000]`."""
    table = _load_whole_files(datasets, files)
    if "[" not in split:
        return table
    whole, slices = split.partition("[")[0], datasets.ReadInstruction.from_spec(split)
    ranges = [range(part.from_, part.to) for part in slices.to_absolute({whole: len(table)})]
    return datasets.concatenate_datasets([table.select(rows) for rows in ranges])  # without a list of their indices


def _load_whole_files(datasets: Any, files: Sequence[Path]) -> Any:
    kind = files[0].suffix
    if kind == ".parquet" and not any(pq.read_metadata(file).num_rows for file in files):
        raise ValueError("has no rows")
    if kind in BUILDERS:
        return datasets.load_dataset(BUILDERS[kind], data_files=[str(file) for file in files])["train"]
    # the state of the files is part of what `datasets` caches the table by
    states = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    text = datasets.Value("string")
    if kind == ".tar":
        columns = dict.fromkeys(column for file in files for _, column, *_ in read_members(file))
        kinds = {name: datasets.Image(decode=False) if IMAGE_SUFFIX.fullmatch(name) else text for name in columns}
        features = datasets.Features({"__key__": text} | kinds)
        arguments = {"files": list(files), "states": states}
        return datasets.Dataset.from_generator(read_shards, features=features, gen_kwargs=arguments)
    features = datasets.Features({name: text for file in files for row in read_json(file) for name in row})
    if not features:
        raise ValueError("has no rows")
    rows = datasets.Dataset.from_generator(
        encode_rows, features=features, gen_kwargs={"files": list(files), "states": states}
    )
    return rows.with_transform(decode_rows)


def read_json(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON file: a list of objects, an object with one such list, or an object on each line.

    Raises ValueError, which names the row, for anything else.
    """
    with file.open(encoding="utf-8-sig") as stream:
        whole: Any = None
        if file.suffix == ".json" or stream.read(1) == "[":
            stream.seek(0)
            try:
                whole = json.load(stream)
            except json.JSONDecodeError as error:
                if error.msg != "Extra data":  # else there is an object on each line
                    raise
        stream.seek(0)
        if isinstance(whole, dict) and not whole.keys() & {*TALKS}:
            filled = {key: value for key, value in whole.items() if value and isinstance(value, list)}
            lists = [key for key, value in filled.items() if isinstance(value[0], dict)]
            if len(lists) > 1:
                raise ValueError(f"{file.name} is an object with several lists: {', '.join(lists)}; write one alone")
            whole = whole[lists[0]] if lists else whole
        if not isinstance(whole, dict | list | None):
            raise ValueError(f"{file.name} must hold rows, not {whole!r:.80}")
        lines = (line for line in stream if line.strip())
        rows: Any = lines if whole is None else [whole] if isinstance(whole, dict) else whole
        for number, row in enumerate(rows):
            try:
                row = json.loads(row) if whole is None else row
            except json.JSONDecodeError as error:
                raise ValueError(f"{file.name}: row {number} is not valid JSON ({error})") from None
            row = {"text": row} if isinstance(row, str) else row
            if not isinstance(row, dict):
                raise ValueError(f"{file.name}: row {number} must be an object, not {row!r:.80}")
            yield row


def encode_rows(files: Sequence[Path], states: Sequence[str]) -> Iterator[dict[str, str | None]]:
    """Yield the rows of JSON files with each value encoded as JSON, the only form that keeps it unchanged."""
    for file in files:
        for row in read_json(file):
            yield {name: None if value is None else json.dumps(value) for name, value in row.items()}


def decode_rows(batch: dict[str, list[str | None]]) -> dict[str, list[Any]]:
    """Decode columns of `encode_rows`."""
    return {name: [None if v is None else json.loads(v) for v in values] for name, values in batch.items()}


def read_members(shard: Path) -> Iterator[tuple[str, str, tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the images and texts of a tar shard: the sample, the column (the extension in lower case), and the file.

    Raises ValueError if the files of a sample are not next to each other, or two are of one column.
    """
    known: dict[str, set[str]] = {}
    before = None
    with tarfile.open(shard) as tar:
        for member in tar:
            named = MEMBER.fullmatch(member.name) if member.isfile() else None
            sample, column = (named[1], named[2].lower()) if named else ("", "")
            if column in UNREAD:
                raise ValueError(f"{shard.name}: {member.name} is not read: give images as JPEG, PNG, WebP or AVIF")
            if column not in TALKS and not IMAGE_SUFFIX.fullmatch(column):
                continue
            if sample != before and sample in known:
                raise ValueError(
                    f"the files of sample {sample} are not next to each other in {shard.name}: write the shard again "
                    "in the order of its names, as `tar --sort=name` does"
                )
            if column in known.setdefault(sample, set()):
                raise ValueError(f"{shard.name} has two {column} files of sample {sample}")
            known[sample].add(column)
            before = sample
            yield sample, column, tar, member


def read_shards(files: Sequence[Path], states: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of tar shards: their texts, and their images as bytes."""
    for file in files:
        row: dict[str, Any] = {}
        for sample, column, tar, member in read_members(file):
            if row and row["__key__"] != sample:
                yield row
                row = {}
            content = tar.extractfile(member).read()  # type: ignore[union-attr]
            row["__key__"] = sample
            if IMAGE_SUFFIX.fullmatch(column):
                row[column] = {"bytes": content, "path": None}
                continue
            try:
                row[column] = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file.name}: {member.name} is not a text in UTF-8 ({error})") from None
        if row:
            yield row
