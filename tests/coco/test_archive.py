from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam3_lora.coco.archive import ArchiveError, ExtractLimits, extract
from sam3_lora.errors import DatasetError

GOOD = {"data/train/a.jpg": b"a" * 3000, "data/train/sub/b.jpg": b"", "data/übung.json": b"{}"}


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(*members: tuple[str | tarfile.TarInfo, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_, errors="surrogateescape") as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(kind: bytes, name: str = "x", target: str = "/etc/passwd") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return tarred((info, b""))


def unix_mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def raw_zip_name(data: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert data.count(old) == 2
    return data.replace(old, new)


def overlapping_zip() -> bytes:
    """Two directory entries that share one local entry."""
    data = zipped(("a.jpg", b"x" * 1000), method=zipfile.ZIP_STORED)
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    directory = data[start:end] * 2
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), start, 0)
    return data[:start] + directory + tail


def quoted_zip() -> bytes:
    """The first entry's content runs over the whole second entry."""
    data = bytearray(zipped(("a.jpg", b"x" * 10), ("b.jpg", b"y" * 10), method=zipfile.ZIP_STORED))
    start = data.index(b"PK\x01\x02")
    struct.pack_into("<2L", data, start + 20, 40, 40)
    return bytes(data)


def encrypted_zip() -> bytes:
    data = bytearray(zipped(("a.jpg", b"secret")))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def corrupt_zip() -> bytes:
    data = bytearray(zipped(("a.jpg", b"secret" * 50), method=zipfile.ZIP_STORED))
    data[60] ^= 0xFF
    return bytes(data)


def pax_bomb() -> bytes:
    """A complete archive whose extended header alone is larger than any honest one."""
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"comment": "x" * 70_000}
    return tarred((info, b"data"))


def pax_record(name: str, record: bytes, type_: bytes = tarfile.XHDTYPE) -> bytes:
    header = tarfile.TarInfo("pax")
    header.type, header.size = type_, len(record)
    return header.tobuf() + record.ljust(512, b"\0") + tarred((name, b"data"))


UNSAFE = {
    "zip parent": zipped(("../a.jpg", b"x")),
    "zip inner parent": zipped(("a/../../b.jpg", b"x")),
    "zip harmless parent": zipped(("a/../b.jpg", b"x")),
    "zip absolute": zipped(("/etc/cron.d/a", b"x")),
    "zip drive": zipped(("C:/a.jpg", b"x")),
    "zip backslash": zipped(("..\\a.jpg", b"x")),
    "zip symlink": zipped((unix_mode("a.jpg", 0o120777), b"/etc/passwd")),
    "zip device": zipped((unix_mode("a.jpg", 0o060777), b"")),
    "zip fifo": zipped((unix_mode("a.jpg", 0o010777), b"")),
    "zip nul": raw_zip_name(zipped(("a.jpgX.exe", b"x")), b"a.jpgX", b"a.jpg\0"),
    "zip newline": zipped(("a\nb.jpg", b"x")),
    "zip escape": zipped(("a\x1b[31m.jpg", b"x")),
    "zip bidi": zipped(("a\u202egpj.exe", b"x")),
    "zip case duplicate": zipped(("a/B.jpg", b"x"), ("a/b.jpg", b"y")),
    "zip folder case duplicate": zipped(("a/b.jpg", b"x"), ("A/c.jpg", b"y")),
    "zip unicode duplicate": zipped(("\u00e9.jpg", b"x"), ("e\u0301.jpg", b"y")),
    "zip dot duplicate": zipped(("a.jpg", b"x"), ("./a.jpg", b"y")),
    "zip file and folder": zipped(("a", b"x"), ("a/b.jpg", b"y")),
    "zip folder and file": zipped(("a/b.jpg", b"y"), ("a", b"x")),
    "zip deep": zipped(("/".join("a" * 30), b"x")),
    "zip long": zipped(("/".join(["a" * 200] * 6), b"x")),
    "zip long part": zipped(("a" * 256, b"x")),
    "tar parent": tarred(("../a.jpg", b"x")),
    "tar absolute": tarred(("/a.jpg", b"x")),
    "tar symlink": special(tarfile.SYMTYPE),
    "tar hard link": special(tarfile.LNKTYPE),
    "tar character device": special(tarfile.CHRTYPE),
    "tar block device": special(tarfile.BLKTYPE),
    "tar fifo": special(tarfile.FIFOTYPE),
    "tar sparse": special(tarfile.GNUTYPE_SPARSE),
    "tar unknown type": special(b"Z"),
    "tar duplicate": tarred(("a.jpg", b"x"), ("a.jpg", b"y")),
    "tar undecodable": tarred(("a\udcff.jpg", b"x"), format_=tarfile.GNU_FORMAT),
    "tar pax parent": pax_record("a.jpg", b"20 path=../evil.jpg\n"),
    "tar pax sparse": pax_record("a.jpg", b"22 GNU.sparse.major=1\n"),
}

INVALID = {
    "empty file": b"",
    "text": b"hello, this is no archive" * 100,
    "image": b"\x89PNG\r\n\x1a\n" + b"\0" * 600,
    "rar": b"Rar!\x1a\x07\x01\x00" + b"x" * 1000,
    "empty zip": zipped(),
    "only junk": zipped(("__MACOSX/._a", b"x"), (".DS_Store", b"x")),
    "zip truncated": zipped(("a.jpg", b"x" * 1000))[:-30],
    "zip head only": zipped(("a.jpg", b"x" * 1000))[:40],
    "zip encrypted": encrypted_zip(),
    "zip wrong checksum": corrupt_zip(),
    "zip lzma": zipped(("a.jpg", b"x"), method=zipfile.ZIP_LZMA),
    "zip bad utf-8": raw_zip_name(zipped(("\u00e9\u00e9", b"x")), b"\xc3\xa9\xc3\xa9", b"\xff\xff\xff\xff"),
    "tar empty": tarred(),
    "tar truncated member": tarred(("a.jpg", b"x" * 5000))[:3000],
    "tar without end": tarred(("a.jpg", b"x" * 512))[:1024],
    "tar corrupt header": tarred(("a.jpg", b"x")).replace(b"a.jpg", b"b.jpg"),
    "tar pax header too large": pax_bomb(),
    "tar pax length": pax_record("a.jpg", b"999 path=b.jpg\n"),
    "tar pax no number": pax_record("a.jpg", b"xx path=b.jpg\n"),
    "tar pax size": pax_record("a.jpg", b"11 size=-1\n"),
    "tar pax global name": pax_record("a.jpg", b"14 path=b.jpg\n", tarfile.XGLTYPE),
    "gz truncated": gzip.compress(tarred(("a.jpg", b"x" * 5000)))[:-20],
    "gz wrong checksum": gzip.compress(tarred(("a.jpg", b"x")))[:-8] + b"\0" * 8,
    "gz of text": gzip.compress(b"hello" * 500),
    "bz2 truncated": bz2.compress(tarred(("a.jpg", b"x" * 5000)))[:-20],
    "bz2 corrupt": b"BZh9" + b"x" * 100,
    "xz truncated": lzma.compress(tarred(("a.jpg", b"x" * 5000)))[:-20],
    "xz corrupt": b"\xfd7zXZ\0" + b"x" * 100,
}

SMALL = ExtractLimits(total_bytes=200_000, file_bytes=100_000, files=20, ratio_free_bytes=50_000)
ZEROS = b"\0" * 90_000
BOMBS = {
    "zip ratio": zipped(("a", ZEROS)),
    "tar.gz ratio": gzip.compress(tarred(("a", ZEROS))),
    "tar.bz2 ratio": bz2.compress(tarred(("a", ZEROS))),
    "tar.xz ratio": lzma.compress(tarred(("a", ZEROS))),
    "zip file size": zipped(("a", b"\0" * 150_000), method=zipfile.ZIP_STORED),
    "tar file size": tarred(("a", b"\0" * 150_000)),
    "zip total": zipped(*((f"{i}", ZEROS) for i in range(3)), method=zipfile.ZIP_STORED),
    "tar total": tarred(*((f"{i}", ZEROS) for i in range(3))),
    "tar junk total": tarred(*((f"__MACOSX/{i}", ZEROS) for i in range(3))),
    "zip count": zipped(*((f"{i}", b"") for i in range(21))),
    "tar count": tarred(*((f"{i}", b"") for i in range(21))),
    "zip overlap": overlapping_zip(),
    "zip quoted overlap": quoted_zip(),
    "gz tail": gzip.compress(tarred(("a", b"x")) + b"\0" * 10_000_000),
}
CASES = [
    *((name, data, "archive_unsafe_path") for name, data in UNSAFE.items()),
    *((name, data, "archive_invalid") for name, data in INVALID.items()),
    *((name, data, "archive_bomb") for name, data in BOMBS.items()),
]


@pytest.mark.parametrize(("data", "code"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_hostile_archive_is_refused_and_leaves_nothing(data: bytes, code: str, tmp_path: Path) -> None:
    archive = tmp_path / "upload"
    archive.write_bytes(data)
    area = tmp_path / "area"

    with pytest.raises(ArchiveError) as caught:
        extract(archive, area / "dataset", SMALL)

    assert caught.value.issue.code == code
    assert caught.value.hint
    assert isinstance(caught.value, DatasetError)
    assert list(area.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["area", "upload"]


@pytest.mark.parametrize("packer", [None, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats(packer: object, format_: int, tmp_path: Path) -> None:
    data = tarred(*GOOD.items(), format_=format_)
    _assert_good(packer(data) if callable(packer) else data, tmp_path, GOOD)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_long_names(format_: int, tmp_path: Path) -> None:
    good = {f"data/{'n' * 150}/{'m' * 150}.jpg": b"x", "data/z.jpg": b"y"}
    _assert_good(tarred(*good.items(), format_=format_), tmp_path, good)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_methods(method: int, tmp_path: Path) -> None:
    _assert_good(zipped(*GOOD.items(), method=method), tmp_path, GOOD)


def test_streamed_zip_with_data_descriptors(tmp_path: Path) -> None:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

    buffer = Unseekable()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in GOOD.items():
            archive.writestr(name, data)
    _assert_good(buffer.getvalue(), tmp_path, GOOD)


def test_folders_and_junk_are_not_files(tmp_path: Path) -> None:
    junk = (
        "__MACOSX/data/._a.jpg",
        "data/.DS_Store",
        "data/train/Thumbs.db",
        "data/desktop.ini",
        "data/",
        "data/train/",
    )
    _assert_good(zipped(*((name, b"") for name in junk), *GOOD.items()), tmp_path, GOOD)


def test_encrypted_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(encrypted_zip())
    with pytest.raises(ArchiveError, match="is encrypted") as caught:
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert "without a password" in caught.value.hint


def test_existing_destination_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped(*GOOD.items()))
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        extract(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_member_is_executable_or_shared(tmp_path: Path) -> None:
    info = tarfile.TarInfo("run.sh")
    info.mode = 0o4777
    archive = tmp_path / "a.tar"
    archive.write_bytes(tarred((info, b"x")))
    extract(archive, tmp_path / "out")
    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o7111 == 0
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_a_name_that_begins_with_nul_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("Xa.json", "{}")
    archive.write_bytes(archive.read_bytes().replace(b"Xa.json", b"\0a.json"))
    with pytest.raises(ArchiveError):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives_only_raise_archive_errors(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seeds = [zipped(*GOOD.items()), tarred(*GOOD.items()), gzip.compress(tarred(*GOOD.items()), mtime=0)]
    damaged = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    archive = folder / "a"
    archive.write_bytes(damaged)
    try:
        extract(archive, folder / "out")
    except ArchiveError:
        assert [path.name for path in folder.iterdir()] == ["a"]
    else:
        assert sorted(path.name for path in folder.iterdir()) == ["a", "out"]


def _assert_good(data: bytes, folder: Path, expected: dict[str, bytes]) -> None:
    archive = folder / "upload"
    archive.write_bytes(data)
    extracted = extract(archive, folder / "new" / "dataset")
    found = {p.relative_to(extracted.root).as_posix(): p.read_bytes() for p in extracted.root.rglob("*") if p.is_file()}
    assert found == expected
    assert (extracted.files, extracted.size_bytes) == (len(expected), sum(map(len, expected.values())))
