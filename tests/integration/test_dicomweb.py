"""A DICOMweb server as a source, against a real Orthanc; and what a server that fails gets, against a small one made here."""

import base64
import json
import logging
import pickle
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest
from factories import make_dicom, make_pixels, make_uid
from orthanc import PASSWORD, USER, find_orthanc, running_orthanc
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless
from typer.testing import CliRunner

from vet_extensions import cli
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.dicomweb import DicomWeb
from vet_extensions.manifest import Manifest
from vet_extensions.schema import RejectionCode as Code

pytest.importorskip("dicomweb_client", reason="needs the extra [net]: pip install 'vet-dino[net]'")
pytestmark = pytest.mark.slow

TOKEN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
STUDIES = {"1.2": ("DX", 2), "1.2.3": ("CR", 3), "1.10": ("CT", 1), "1.2.30": ("DX", 1)}


class Server:
    """A filled Orthanc: its DICOMweb root, the file with headers, and the stored files by SOPInstanceUID."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.root = f"{url}/dicom-web"
        self.headers = folder / "headers.txt"
        self.headers.write_text(f"# who we are\nAuthorization: Basic {TOKEN}\n\n", encoding="ascii")
        self.files: dict[str, Path] = {}

    def ask(self, path: str, *, method: str = "GET", data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        request.add_header("Authorization", f"Basic {TOKEN}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def store(self, path: Path) -> None:
        self.ask("/instances", method="POST", data=path.read_bytes())
        self.files[str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = path

    def source(self, **options) -> DicomWeb:
        return DicomWeb(self.root, headers_file=self.headers, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_orthanc() is None:
        pytest.skip("needs Orthanc: apt-get install --no-install-recommends orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("dicomweb")
    with running_orthanc(folder / "orthanc") as url:
        filled = Server(url, folder)
        syntaxes = (ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless)
        for study, (modality, n_images) in STUDIES.items():
            for number in range(n_images):
                name = f"{study}-{number}"
                path = make_dicom(
                    folder / f"{name}.dcm",
                    pixels=make_pixels(64, 64, seed=number),
                    transfer_syntax=syntaxes[number],
                    StudyInstanceUID=study,
                    SeriesInstanceUID=make_uid(f"{study}/series"),
                    PatientID=f"patient of {study}",
                    PatientName="Müller^Bello",
                    SpecificCharacterSet="ISO_IR 192",
                    Modality=modality,
                    StudyDate="20240601" if study == "1.2" else "20230601",
                )
                filled.store(path)
        yield filled


def test_a_servers_radiographs_become_the_same_manifest_as_their_files(server: Server, tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text("a salt for tests")
    for number, path in enumerate(path for path in server.files.values() if pydicom.dcmread(path).Modality != "CT"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.dcm").write_bytes(path.read_bytes())
    shared = ["--salt-file", str(salt), "--workers", "0"]
    asked = [server.root, str(tmp_path / "web"), "--source", "dicomweb", "--headers-file", str(server.headers)]
    for arguments in (asked, [str(tmp_path / "in"), str(tmp_path / "files")]):
        result = CliRunner().invoke(cli.app, ["intake", *arguments, *shared])
        assert result.exit_code == 0, (result.stderr, result.exception)
    web, files = (Manifest.open(tmp_path / name).table.drop_columns("source_id") for name in ("web", "files"))
    assert len(web) > 0
    assert web.equals(files)
    told = [path.read_bytes() for path in (tmp_path / "web").iterdir() if path.is_file()]
    assert not any(TOKEN.encode() in text or b"1.2.3" in text for text in told)


def test_all_radiographs_are_listed_in_the_order_of_their_keys_whatever_the_page(server: Server) -> None:
    keys = [item.key for item in server.source().items()]
    assert keys == sorted(keys)
    assert [key.split("/")[0] for key in keys] == ["1.2.3"] * 3 + ["1.2.30"] + ["1.2"] * 2
    assert {key.split("/")[2] for key in keys} < set(server.files)
    assert [item.key for item in server.source(page=1).items()] == keys
    assert [item.key for item in server.source(page=2).items()] == keys


def test_modalities_and_filters_choose_studies(server: Server) -> None:
    def studies(**options) -> set[str]:
        return {item.key.split("/")[0] for item in server.source(**options).items()}

    assert studies(modalities=("CR",)) == {"1.2.3"}
    assert studies(modalities=()) == set(STUDIES)
    assert studies(filters=(("StudyDate", "20240101-20241231"),)) == {"1.2"}
    assert studies(filters=(("PatientID", "nobody"),)) == set()
    assert studies(filters=(("00100020", "*1.2"), ("StudyDate", "-20241231"))) == {"1.2"}
    assert studies(filters=(("StudyInstanceUID", "1.2,1.2.3,1.5"),)) == {"1.2", "1.2.3"}


def test_the_command_line_asks_for_what_its_query_says_and_writes_it_nowhere(server: Server, tmp_path: Path) -> None:
    asked = [server.root, str(tmp_path / "out"), "--source", "dicomweb", "--headers-file", str(server.headers)]
    chosen = ["--query", "PatientID=patient?of*1.2", "--query", "StudyDate=20240101-", "--modality", "DX"]
    result = CliRunner().invoke(cli.app, ["intake", *asked, *chosen, "--workers", "0"])
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert Manifest.open(tmp_path / "out").n_images == STUDIES["1.2"][1]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"patient?of" in data for data in [*written, result.output.encode(), result.stderr.encode()])


def test_an_instance_comes_in_its_own_transfer_syntax_with_the_same_bytes_of_pixels(server: Server) -> None:
    source = pickle.loads(pickle.dumps(server.source()))
    for item in source.items():
        assert (item.problem, item.facts) == (None, None)
        with source.open(item.key) as file:
            received = pydicom.dcmread(file)
        stored = pydicom.dcmread(server.files[item.key.split("/")[2]])
        assert received.file_meta.TransferSyntaxUID == stored.file_meta.TransferSyntaxUID
        assert received.PixelData == stored.PixelData
        assert (received.PatientName, received.ViewPosition) == (stored.PatientName, stored.ViewPosition)


def test_an_instance_that_was_deleted_meanwhile_is_not_found(server: Server, tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "short-lived.dcm", StudyInstanceUID="1.4", PatientID="of 1.4")
    server.store(path)
    source = server.source()
    (key,) = [item.key for item in source.items() if item.key.startswith("1.4/")]
    (orthanc_id,) = json.loads(
        server.ask("/tools/find", method="POST", data=b'{"Level": "Study", "Query": {"StudyInstanceUID": "1.4"}}')
    )
    server.ask(f"/studies/{orthanc_id}", method="DELETE")
    with pytest.raises(FileNotFoundError):
        source.open(key)


def test_without_the_header_the_server_refuses_and_the_error_says_what_to_check(server: Server) -> None:
    with pytest.raises(UserError, match=r"401.*file with headers"):
        list(DicomWeb(server.root, n_attempts=1).items())


def test_neither_uids_nor_secrets_are_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source = server.source()
    for item in source.items():
        source.open(item.key).close()
    text = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "studies match" in text
    assert not any(secret in text for secret in (TOKEN, "1.2.3", make_uid("1.2/series"), "Bello"))
    assert TOKEN.encode() not in pickle.dumps(source)


@contextmanager
def failing_server(answers: dict[str, list[tuple[int, bytes]]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives each path's answers in turn, the last one for ever. Gives its URL and the list of requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            requests.append(path)
            left = answers.get(path, [(404, b"")])
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()
            thread.join()


def rows(**attributes: str) -> bytes:
    return json.dumps([{tag.strip("_"): {"vr": "UI", "Value": [value]} for tag, value in attributes.items()}]).encode()


ONE_STUDY = rows(_0020000D="1.5")
ONE_IMAGE = rows(_0020000E="1.5.1", _00080018="1.5.1.1")


def test_a_server_that_is_busy_is_asked_again() -> None:
    answers = {"/studies": [(503, b""), (500, b""), (200, ONE_STUDY)], "/studies/1.5/instances": [(200, ONE_IMAGE)]}
    with failing_server(answers) as (url, requests):
        items = list(DicomWeb(url, modalities=(), wait_ms=1).items())
    assert [item.key for item in items] == ["1.5/1.5.1/1.5.1.1"]
    assert requests.count("/studies") == 4  # two failures, one page, and one that repeats it: the offset is ignored


def test_a_server_that_never_recovers_is_given_up_after_the_attempts() -> None:
    with failing_server({"/studies": [(503, b"")]}) as (url, requests):
        with pytest.raises(UserError, match="503"):
            list(DicomWeb(url, modalities=(), wait_ms=1, n_attempts=3).items())
        assert len(requests) == 3


def test_a_redirection_is_not_followed_since_the_headers_would_go_with_it() -> None:
    with failing_server({"/studies": [(302, b"")], "/elsewhere": [(200, ONE_STUDY)]}) as (url, requests):
        with pytest.raises(UserError, match="302"):
            list(DicomWeb(url, modalities=(), wait_ms=1, n_attempts=1).items())
        assert requests == ["/studies"]


@pytest.mark.parametrize("body", [b'["study"]', b"null", b"<html>"])
def test_an_answer_that_lists_no_data_sets_is_a_users_mistake(body: bytes) -> None:
    with failing_server({"/studies": [(200, body)]}) as (url, _), pytest.raises(UserError, match="DICOMweb root"):
        list(DicomWeb(url, modalities=(), wait_ms=1, n_attempts=1).items())


@pytest.mark.parametrize(
    ("answer", "code"),
    [((404, b""), Code.FILE_MISSING), ((500, b""), Code.UNREADABLE), ((200, b"no JSON"), Code.UNREADABLE)],
)
def test_a_study_that_cannot_be_listed_is_an_item_with_a_problem(answer: tuple[int, bytes], code: Code) -> None:
    with failing_server({"/studies": [(200, ONE_STUDY)], "/studies/1.5/instances": [answer]}) as (url, _):
        (item,) = DicomWeb(url, modalities=(), wait_ms=1, n_attempts=2).items()
    assert item.key == "1.5/"
    assert item.problem is not None
    assert item.problem.code == code
    assert "1.5" not in item.problem.detail


@pytest.mark.parametrize("series", ["../../admin", "..", "1..2", "1" * 65, ""])
def test_identifiers_that_are_none_never_become_part_of_a_request(series: str) -> None:
    image = rows(_0020000E=series, _00080018="1.5.1.1")
    with failing_server({"/studies": [(200, ONE_STUDY)], "/studies/1.5/instances": [(200, image)]}) as (url, _):
        (item,) = DicomWeb(url, modalities=(), wait_ms=1).items()
    assert (item.key, item.problem and item.problem.code) == ("1.5/", Code.MISSING_IDENTIFIER)


def test_an_instance_that_is_no_dicom_is_an_error_of_reading() -> None:
    with (
        failing_server({"/studies/1.5/series/1.6/instances/1.7": [(200, b"<html>")]}) as (url, _),
        pytest.raises(OSError, match="Error"),
    ):
        DicomWeb(url, wait_ms=1, n_attempts=1).open("1.5/1.6/1.7")


@pytest.mark.parametrize("content", ["no header", "Bad name: x", "Ключ: x"])
def test_a_wrong_file_with_headers_is_named_without_quoting_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "headers.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="file with headers") as caught:
        list(DicomWeb("http://127.0.0.1:9", headers_file=path).items())
    assert content not in str(caught.value)
