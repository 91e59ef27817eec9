"""Where the images of tasks may come from."""

import base64

import pytest

from refdiff.errors import InputError
from refdiff.serve.label_studio_image import LabelStudioImages, LabelStudioOptions
from tests.support.label_studio import label_studio

UPLOAD = "/data/upload/1/a%20b.png"


@pytest.fixture
def studio():
    with label_studio() as fake:
        fake.files[UPLOAD] = b"the file"
        yield fake


def images(studio, **options):
    return LabelStudioImages(LabelStudioOptions(url=studio.url, **options))


def test_a_data_uri_needs_no_label_studio():
    uri = "data:image/png;base64," + base64.b64encode(b"file").decode()
    assert LabelStudioImages(LabelStudioOptions()).read(uri) == b"file"


@pytest.mark.parametrize(
    "uri", ["data:image/png,abc", "data:image/png;base64,%%%", "data:", "data:;base64,a"]
)
def test_a_damaged_data_uri_is_refused(uri):
    with pytest.raises(InputError, match="data URI"):
        LabelStudioImages(LabelStudioOptions()).read(uri)


@pytest.mark.parametrize("address", [None, 3, "", ["x"], {"url": "x"}])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="the task has no image"):
        LabelStudioImages(LabelStudioOptions()).read(address)


@pytest.mark.parametrize(
    "address", [UPLOAD, "http://127.0.0.1:1/data/upload/a.png", "file:///etc/passwd", "/etc/passwd"]
)
def test_nothing_is_fetched_or_opened_without_the_operators_word(address):
    with pytest.raises(InputError, match="--label-studio-url"):
        LabelStudioImages(LabelStudioOptions()).read(address)


def test_a_path_and_an_address_of_label_studio_are_fetched(studio):
    assert images(studio).read(UPLOAD) == b"the file"
    assert images(studio).read(f"{studio.url}{UPLOAD}") == b"the file"
    studio.files["/data/local-files/?d=x/y.png"] = b"local"
    assert images(studio).read("/data/local-files/?d=x/y.png") == b"local"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/data/upload/a.png",
        "https://127.0.0.1:{port}/data/upload/a.png",
        "http://localhost:{port}/data/upload/a.png",
        "http://user@127.0.0.1:{port}/data/upload/a.png",
        "//attacker.invalid/data/upload/a.png",
        "http://[::1/data/upload/a.png",
        "ftp://127.0.0.1:{port}/data/upload/a.png",
        "file:///data/upload/a.png",
        "s3://bucket/a.png",
        "http://127.0.0.1:{port}@attacker.invalid/data/upload/a.png",
    ],
)
def test_another_server_is_never_asked(studio, address):
    with pytest.raises(InputError, match="not at the Label Studio"):
        images(studio, token="secret").read(address.format(port=studio.url.rpartition(":")[2]))
    assert not studio.asked


@pytest.mark.parametrize(
    "address",
    [
        "/api/users/",
        "/logout",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "/data/x/..%2f..%2fapi/users",
        "/data/a b.png",
        "/data/a\r\nX-Other: 1",
        "/data\\..\\api",
        "/data/%5c..%5capi",
        "/datax/upload",
        "/data/ü.png",
        "data/upload/a.png",
    ],
)
def test_only_paths_of_images_are_asked_for(studio, address):
    with pytest.raises(InputError, match=r"no path of images|not at the Label Studio"):
        images(studio).read(address)
    assert not studio.asked


@pytest.mark.parametrize(
    "place", ["{url}/data/upload/other.png", "http://127.0.0.1:1/", "file:///etc/passwd"]
)
def test_redirects_are_not_followed(studio, place):
    studio.redirects[UPLOAD] = place.format(url=studio.url)
    with pytest.raises(InputError, match=r"answers 302 .*redirects are not followed"):
        images(studio).read(UPLOAD)
    assert [path for path, _ in studio.asked] == [UPLOAD]


def test_a_file_that_is_too_large_missing_or_cut_short_is_refused(studio):
    with pytest.raises(InputError, match="more than 4 bytes"):
        images(studio, most_bytes=4).read(UPLOAD)
    with pytest.raises(InputError, match="answers 404"):
        images(studio).read("/data/upload/none.png")
    studio.cut_short = True
    with pytest.raises(InputError, match=r"as a whole|cannot be fetched"):
        images(studio, seconds=0.3).read(UPLOAD)


def test_a_label_studio_that_is_not_there_is_named(studio):
    with pytest.raises(InputError, match=r"cannot be fetched .*check --label-studio-url"):
        LabelStudioImages(LabelStudioOptions(url="http://127.0.0.1:1")).read(UPLOAD)


def test_a_legacy_token_is_sent_and_a_wrong_one_is_said_to_be_wrong(studio):
    studio.authorization = "Token legacy"
    assert images(studio, token="legacy").read(UPLOAD) == b"the file"
    for token in (None, "other"):
        with pytest.raises(InputError, match=r"answers 401 .*--label-studio-token"):
            images(studio, token=token).read(UPLOAD)


def test_a_personal_token_is_exchanged_once_and_again_when_its_access_ends(studio):
    studio.refresh = "header.claims.signature"
    source = images(studio, token=studio.refresh)
    assert source.read(UPLOAD) == source.read(UPLOAD) == b"the file"
    assert studio.access == ["access0"]
    studio.access.append("of another user")
    assert source.read(UPLOAD) == b"the file"
    assert studio.access[-1] == "access2"
    with pytest.raises(InputError, match="does not accept the token"):
        images(studio, token="a.b.c").read(UPLOAD)


def test_a_path_of_the_server_is_kept(studio):
    studio.files["/studio/data/upload/a.png"] = b"below"
    below = LabelStudioImages(LabelStudioOptions(url=f"{studio.url}/studio/"))
    assert below.read("/studio/data/upload/a.png") == below.read("/data/upload/a.png") == b"below"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://x", "http://", "http://x:y", "http://u:p@x", "http://x/?a"]
)
def test_an_address_of_no_server_is_refused_at_the_start(url):
    with pytest.raises(InputError, match="--label-studio-url"):
        LabelStudioImages(LabelStudioOptions(url=url))


def test_a_token_is_not_shown_with_the_options():
    assert "secret" not in repr(LabelStudioOptions(url="http://127.0.0.1:1", token="secret"))
