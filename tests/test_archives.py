"""Archives that try to escape or to swell, and damaged ones."""

import gzip
import io
import os
import random
import stat
import tarfile
import zipfile

import pytest

from convai.errors import UserError
from convai.io.archives import BadArchive, unpack_archive

CONTENT = random.Random(0).randbytes(300_000)


def tar_bytes(files, mode="w:gz"):
    """A tar file; `files` maps names to contents, or to a function that changes the member's TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if callable(content):
                content(member)
                content = b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(files, mode=0):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def unpack(tmp_path):
    """Unpack bytes to tmp_path/out/target; where that fails, check that it left nothing behind."""

    def run(content, **limits):
        archive = tmp_path / "archive.bin"  # the name says nothing
        archive.write_bytes(content)
        try:
            return unpack_archive(archive, tmp_path / "out" / "target", **limits)
        except UserError as error:
            assert str(archive) in str(error) and "\n" not in str(error)
            assert list((tmp_path / "out").iterdir()) == []
            assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.bin", "out"]
            raise

    return run


FILES = {"a.txt": b"1", "sub/b.txt": CONTENT}
PACKERS = {"tar.gz": tar_bytes, "tar": lambda files: tar_bytes(files, "w:"), "zip": zip_bytes}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_unpacks_by_content(unpack, tmp_path, pack):
    assert unpack(pack(FILES)) == tmp_path / "out" / "target"
    assert tree(tmp_path / "out" / "target") == FILES
    assert os.listdir(tmp_path / "out") == ["target"]


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_single_top_folder_is_returned(unpack, tmp_path, pack):
    folder = unpack(pack({"./model/config.json": b"{}", "./model/sub/weights": b"w"}))
    assert folder == tmp_path / "out" / "target" / "model"
    assert tree(folder) == {"config.json": b"{}", "sub/weights": b"w"}


def test_folders_as_members(unpack):
    def directory(member):
        member.type = tarfile.DIRTYPE

    folder = unpack(tar_bytes({"./": directory, "model/": directory, "model/empty": directory, "model/x": b"x"}))
    assert folder.name == "model" and (folder / "empty").is_dir() and tree(folder) == {"x": b"x"}


@pytest.mark.parametrize("pack", ["tar", "zip"])
def test_permissions_are_not_carried_over(unpack, pack):
    def harmful(member):
        member.mode = 0o6777

    content = tar_bytes({"tool": harmful}) if pack == "tar" else zip_bytes({"tool": b""}, stat.S_IFREG | 0o6777)
    folder = unpack(content)
    assert (folder / "tool").stat().st_mode & 0o7111 == 0
    assert folder.stat().st_mode & 0o777 == 0o777 & ~current_umask()  # others may read a shared cache


def current_umask():
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


OUTSIDE = [
    "../evil",
    "a/../../evil",
    "/tmp/evil",
    "..",
    "a\\..\\..\\evil",
    "C:\\evil",
    "\\\\host\\evil",
    "x/" * 33 + "deep",
]


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(unpack, pack, name):
    with pytest.raises(BadArchive, match=r"member .* leads outside") as caught:
        unpack(pack({"good.txt": b"1", name: b"2"}))
    assert repr(name) in str(caught.value)


TYPES = {
    "symbolic link": (tarfile.SYMTYPE, "member 'odd' is a link"),
    "hard link": (tarfile.LNKTYPE, "member 'odd' is a link"),
    "device": (tarfile.CHRTYPE, "member 'odd' is a special file"),
    "block device": (tarfile.BLKTYPE, "member 'odd' is a special file"),
    "pipe": (tarfile.FIFOTYPE, "member 'odd' is a special file"),
    "unknown type": (b"Z", "member 'odd' is a special file"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_links_and_devices_in_tar_are_refused(unpack, kind):
    def change(member):
        member.type, message = TYPES[kind]
        member.linkname = "good.txt" if "link" in message else ""

    with pytest.raises(BadArchive, match=TYPES[kind][1]):
        unpack(tar_bytes({"good.txt": b"1", "odd": change}))


@pytest.mark.parametrize("mode, message", [(stat.S_IFLNK, "is a link"), (stat.S_IFIFO, "is a special file")])
def test_links_and_devices_in_zip_are_refused(unpack, mode, message):
    for name in ("odd", "odd/"):
        with pytest.raises(BadArchive, match=f"member '{name}' {message}"):
            unpack(zip_bytes({name: b"/etc/passwd"}, mode | 0o777))


def test_sparse_file_is_refused(unpack):
    def sparse(member):
        member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000000"}

    with pytest.raises(BadArchive, match="is a special file"):
        unpack(tar_bytes({"odd": sparse}))


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_bomb_is_stopped_by_its_bytes(unpack, pack):
    bomb = pack({"a": bytes(600_000), "b": bytes(400_001)})
    with pytest.raises(BadArchive, match=r"more than 1,000,000 bytes when unpacked \(member 'b'\)"):
        unpack(bomb, max_bytes=1_000_000)
    assert len(tree(unpack(bomb, max_bytes=1_000_001))) == 2


def test_zip_that_lies_about_its_sizes(unpack):
    honest = zip_bytes({"a": bytes(500_000)})
    lying = honest.replace((500_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lying != honest
    with pytest.raises(BadArchive, match="damaged"):
        unpack(lying, max_bytes=1000)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_zipfile_does_not_bound(unpack, method):
    """Of these it unpacks all that a block of the file holds at once, up to a gigabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as zipped:
        zipped.writestr("a", bytes(1000))
    with pytest.raises(BadArchive, match="member 'a' is a file packed by another method than deflate"):
        unpack(buffer.getvalue())


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_too_many_members(unpack, pack):
    with pytest.raises(BadArchive, match="more than 3 members"):
        unpack(pack({f"{i}": b"" for i in range(4)}), max_files=3)
    assert len(tree(unpack(pack({f"{i}": b"" for i in range(3)}), max_files=3))) == 3


def test_name_of_gigabytes_is_not_loaded(unpack):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with pytest.raises(BadArchive, match="oversized headers"):
        unpack(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(5_000_000)))


def test_bomb_behind_the_end_of_the_archive(unpack):
    """tarfile stops at the end marker; the rest is read only to reach gzip's checksum."""
    with pytest.raises(BadArchive, match="too large"):
        unpack(gzip.compress(tar_bytes({"a": b"1"}, "w:") + bytes(8_000_000)), max_bytes=1000)


def test_headers_nested_without_end(unpack):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    with pytest.raises(BadArchive, match="damaged"):
        unpack((header.tobuf() + b"y".ljust(512, b"\0")) * 2000)


@pytest.mark.parametrize("kind, message", [(tarfile.REGTYPE, "special"), (tarfile.GNUTYPE_LONGNAME, "oversized")])
def test_negative_sizes(unpack, kind, message):
    """They send some versions of tarfile into an endless loop, or make it read everything at once."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, -(1 << 20)
    with pytest.raises(BadArchive, match=message):
        unpack(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_truncated_anywhere_is_damaged(unpack, pack):
    whole = pack({"a.txt": CONTENT[:700], "b.txt": b"2"})
    # A plain tar ends in zeros from here on: header, 2 blocks, header, block of 512 bytes.
    longest = 5 * 512 if pack is PACKERS["tar"] else len(whole) - 1
    for length in [*range(0, longest, 128), longest]:
        with pytest.raises(BadArchive, match="damaged"):
            unpack(whole[:length])


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_changed_bytes_are_noticed(unpack, kind):
    whole = bytearray(PACKERS[kind]({"a.bin": CONTENT}))
    whole[len(whole) // 2] ^= 1
    with pytest.raises(BadArchive, match="damaged"):
        unpack(bytes(whole))


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>" * 100, CONTENT, bytes(20_000), b"PK", b"\x1f\x8b"])
def test_no_archive(unpack, content):
    with pytest.raises(BadArchive, match=r"damaged|no files"):
        unpack(content)


@pytest.mark.parametrize("names", [["a", "./a"], ["a", "a/b"], ["a/b", "a"]])
@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_members_in_one_place_are_refused(unpack, pack, names):
    with pytest.raises(BadArchive, match="takes the place of another"):
        unpack(pack(dict.fromkeys(names, b"")))


def test_name_too_long_for_a_file(unpack):
    with pytest.raises(BadArchive, match="File name too long"):
        unpack(tar_bytes({"x" * 300: b""}))


def test_existing_target_is_kept(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes(FILES))
    (tmp_path / "target").mkdir()
    with pytest.raises(UserError, match="exists already"):
        unpack_archive(tmp_path / "x.tar", tmp_path / "target")


def test_missing_archive(tmp_path):
    with pytest.raises(UserError, match=r"cannot unpack .*No such file"):
        unpack_archive(tmp_path / "x.tar", tmp_path / "target")


def test_full_disk_while_unpacking(tmp_path, full_disk):
    (tmp_path / "x.tar").write_bytes(tar_bytes(FILES))
    with pytest.raises(UserError, match="no space left on the disk") as caught:
        unpack_archive(tmp_path / "x.tar", tmp_path / "out" / "target")
    assert not isinstance(caught.value, BadArchive) and os.listdir(tmp_path / "out") == []
