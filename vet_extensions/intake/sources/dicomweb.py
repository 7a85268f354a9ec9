"""A DICOMweb server as a source: QIDO-RS says what there is, WADO-RS sends it (PS3.18 sections 10.6 and 10.4).

`run` uses it for a source that is a URL; it needs the extra [net]. An item's key is "study/series/instance", the UIDs as they
are: keys stay in intake and in OUT/private. Neither UIDs nor what authenticates is logged: the libraries below are kept quiet.
"""

import importlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pydicom import dcmwrite
from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword

from vet_extensions.errors import UserError
from vet_extensions.intake.sources.base import SourceItem
from vet_extensions.intake.sources.labelling import nearest
from vet_extensions.schema import Rejection, RejectionCode

RADIOGRAPHIC = ("CR", "DX", "MG", "IO")
"""Values of Modality (0008,0060) that radiographs have."""

_LOG = logging.getLogger("vet_extensions")
_TALKATIVE = ("dicomweb_client", "dicomweb_client.web", "urllib3.connectionpool", "pydicom")
_AS_IT_IS = (("application/dicom", "*"),)
"""Media type and transfer syntax: not transcoded (PS3.18 section 8.7.3.5.2)."""
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
_MODALITY_TAGS = (0x00080060, 0x00080061)
"""Modality and ModalitiesInStudy."""
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
"""A value of a code string (PS3.5 section 6.2, CS)."""
_DAYS = re.compile(r"[0-9]{8}(-([0-9]{8})?)?|-[0-9]{8}")
"""A day or a range of days (PS3.4 section C.2.2.2.5.1)."""


@dataclass
class DicomWeb:
    """The instances of a server's studies that hold radiographs.

    url: of the DICOMweb root, such as "https://pacs.example/dicom-web".
    modalities: which studies, and which of their images, are asked for; none: all.
    filters: further (attribute, value) that studies must match, in QIDO-RS's words: ("StudyDate", "20240101-20241231"). An
    attribute is a keyword or a tag ("00080020"), of an item of a sequence with "." between them; each is given once.
    headers_file: lines "Name: value" that every request carries, to authenticate; a command line could be seen by others.
    page: results a query. n_attempts, wait_ms: of a request that times out, cannot connect or gets 408, 429 or 5xx; the wait
    before the second is twice wait_ms, and doubles each time. timeout_s: without an answer, or between two pieces of one.
    """

    url: str
    filters: tuple[tuple[str, str], ...] = ()
    modalities: tuple[str, ...] = RADIOGRAPHIC
    headers_file: Path | None = None
    page: int = 500
    n_attempts: int = 5
    wait_ms: int = 250
    timeout_s: float = 60.0
    name: str = field(default="DICOMweb", init=False)
    label_names: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(
                "The server's address must be the URL of its DICOMweb root, such as https://pacs.example/dicom-web, without '?' "
                "and '#'. Give it so."
            )
        if parts.username is not None or parts.password is not None:
            raise UserError(
                "The server's address holds a user name or password. Give them in a file with headers instead."
            )
        _check_modalities(self.modalities)
        _check_filters(self.filters)

    @property
    def label_policy(self) -> dict[str, str]:
        return {}

    def items(self) -> Iterator[SourceItem]:
        """Every instance of the studies that match, sorted by key. A study that cannot be listed is an item with a problem.

        Errors: UserError where the server cannot be asked for its studies, or the extra [net] is not installed.
        """
        studies = self._studies()
        _LOG.info("DICOMweb: %d studies match", len(studies))
        for study in studies:
            yield from self._instances(study)

    def open(self, key: str) -> BinaryIO:
        """The instance, in the transfer syntax that the server keeps it in. Errors: OSError; FileNotFoundError if it is gone."""
        study, series, instance = key.split("/")
        with _quiet():
            answer = _asked(partial(self._client().retrieve_instance, study, series, instance, media_types=_AS_IT_IS))
            file = io.BytesIO()
            try:
                dcmwrite(file, answer, enforce_file_format=True)
            except Exception as error:
                raise OSError(f"what the server sent cannot be read ({type(error).__name__})") from None
        file.seek(0)
        return file

    def _studies(self) -> list[str]:
        found: set[str] = set()
        try:
            for modality in self.modalities or (None,):
                asked = dict(self.filters) | ({} if modality is None else {"ModalitiesInStudy": modality})
                query = partial(self._client().search_for_studies, search_filters=asked)
                answers = self._pages(query, _STUDY)
                found.update(uid for uid in (_text(answer, _STUDY) for answer in answers) if _UID.fullmatch(uid))
        except OSError as error:
            raise UserError(
                f"The DICOMweb server cannot be asked for its studies: {error}. Check the address (its DICOMweb root), that the "
                "server runs, the filters, and with 401 or 403 the file with headers."
            ) from None
        return sorted(found, key=lambda uid: f"{uid}/")

    def _instances(self, study: str) -> list[SourceItem]:
        """One study's instances, sorted; a problem under the study's own key if they are not all known."""
        items: dict[str, SourceItem] = {}
        try:
            query = partial(self._client().search_for_instances, study_instance_uid=study)
            answers = self._pages(query, _INSTANCE)
            for answer in answers:
                uids = (study, _text(answer, _SERIES), _text(answer, _INSTANCE))
                if self.modalities and _text(answer, _MODALITY) not in ("", *self.modalities):
                    continue
                if all(_UID.fullmatch(uid) for uid in uids):
                    items["/".join(uids)] = SourceItem("/".join(uids))
                else:
                    detail = "the server lists an instance without a valid SeriesInstanceUID and SOPInstanceUID"
                    problem = Rejection(RejectionCode.MISSING_IDENTIFIER, detail)
                    items[f"{study}/"] = SourceItem(f"{study}/", problem=problem)
        except FileNotFoundError:
            problem = Rejection(RejectionCode.FILE_MISSING, "the server lists the study and does not have it")
            items[f"{study}/"] = SourceItem(f"{study}/", problem=problem)
        except OSError as error:
            problem = Rejection(RejectionCode.UNREADABLE, f"the server does not list the study's images: {error}")
            items[f"{study}/"] = SourceItem(f"{study}/", problem=problem)
        return [items[key] for key in sorted(items)]

    def _pages(self, query: Callable[..., list[dict[str, Any]]], tag: str) -> Iterator[dict[str, Any]]:
        """All results of a query, until nothing new comes: a server may send fewer than asked for, or ignore the offset.

        Orthanc counts the limit from the first result, not from the offset, where it filters by ModalitiesInStudy (seen in
        1.10.1): where a page that should follow is empty, it is asked for once more in that way.
        """
        seen: set[str] = set()
        offset, counted_from_start = 0, False
        while True:
            limit = self.page + (offset if counted_from_start else 0)
            with _quiet():
                page = _asked(partial(query, limit=limit, offset=offset))
            if not isinstance(page, list) or not all(isinstance(answer, dict) for answer in page):
                raise OSError("the answer is no list of data sets")
            new = [answer for answer in page if _text(answer, tag) not in seen]
            yield from new
            seen.update(_text(answer, tag) for answer in new)
            if new:
                offset += len(page)
            elif counted_from_start or offset < self.page:
                return
            else:
                counted_from_start = True

    def _client(self) -> Any:
        return _client_of(self.url, self.headers_file, self.timeout_s, self.n_attempts, self.wait_ms)


@lru_cache(maxsize=1)
def _client_of(url: str, headers_file: Path | None, timeout_s: float, n_attempts: int, wait_ms: int) -> Any:
    """One a process: its connection is kept open from request to request."""
    try:
        client_module = importlib.import_module("dicomweb_client.web")
        requests = importlib.import_module("requests")
    except ImportError:
        raise UserError(
            "Reading from a DICOMweb server needs the package dicomweb-client. Install it: pip install 'vet-dino[net]'."
        ) from None
    headers = {} if headers_file is None else _read_headers(headers_file)
    session = requests.Session()
    session.max_redirects = 0  # a redirection could carry the headers to another host
    for scheme in ("http://", "https://"):
        session.mount(scheme, _wildcards_as_they_are(requests.adapters.HTTPAdapter))
    client = client_module.DICOMwebClient(url=url.rstrip("/"), session=session, headers=headers, timeout=timeout_s)
    client.set_http_retry_params(
        max_attempts=n_attempts, wait_exponential_multiplier=wait_ms, retriable_error_codes=_TRY_AGAIN
    )
    return client


def _wildcards_as_they_are(adapter: type) -> Any:
    """What sends requests, with "*" and "?" of a query as they are: the client escapes them, though a URL's query may hold both
    (RFC 3986 section 3.4), and Orthanc 1.10.1 does not take the escapes back, so that nothing would match."""

    class Adapter(adapter):
        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            address, mark, query = request.url.partition("?")
            request.url = address + mark + query.replace("%2A", "*").replace("%3F", "?")
            return super().send(request, *args, **options)

    return Adapter()


def _check_modalities(modalities: Iterable[str]) -> None:
    for modality in modalities:
        if not _CODE.fullmatch(modality):
            raise UserError(
                f"'{modality}' is no modality.{nearest(modality, RADIOGRAPHIC)} Allowed are values of Modality (0008,0060), in "
                f"capitals and one at a time; radiographs have {', '.join(RADIOGRAPHIC)}. Give each by itself: --modality DX "
                "--modality CR; or --modality all alone."
            )


def _check_filters(filters: Iterable[tuple[str, str]]) -> None:
    """Errors: UserError, which quotes no value: it may be a patient's name or number."""
    seen: set[tuple[int | None, ...]] = set()
    for attribute, value in filters:
        tags = tuple(_tag_of(part) for part in attribute.split("."))
        if None in tags:
            shown = f"'{attribute}'" if re.fullmatch(r"[A-Za-z0-9.]{1,64}", attribute) else "What stands before a '='"
            raise UserError(
                f"{shown} is no attribute of DICOM to ask a server by.{nearest(attribute, keyword_dict)} Allowed are keywords "
                "such as StudyDate, tags such as 00080020, and either inside a sequence with '.' between them. Correct it."
            )
        if tags[-1] in _MODALITY_TAGS:
            raise UserError(
                f"'{attribute}' cannot be asked for beside the modalities. Give --modality DX, or all, for it."
            )
        if tags in seen:
            raise UserError(
                f"'{attribute}' is asked for twice; allowed is each attribute once. Give a range as 20240101-20241231, several "
                "UIDs with commas between them, and other values in intakes of their own."
            )
        if not value.strip():
            raise UserError(
                f"'{attribute}' is asked for without a value, which every study matches. Give one after the '=', or leave it out."
            )
        if _is_date(tags[-1]) and not _DAYS.fullmatch(value):
            raise UserError(
                f"'{attribute}' is asked for with {len(value)} characters that are no date. Allowed are a day (20240131) and a "
                "range (20240101-20241231, 20240101-, -20241231), without hyphens inside a day. Write it so."
            )
        seen.add(tags)


def _tag_of(attribute: str) -> int | None:
    return int(attribute, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", attribute) else tag_for_keyword(attribute)


def _is_date(tag: int | None) -> bool:
    try:
        return tag is not None and dictionary_VR(tag) == "DA"
    except KeyError:  # a private tag
        return False


def _asked(request: Callable[[], Any]) -> Any:
    """The request's answer. Errors: OSError without the URL, which holds UIDs; FileNotFoundError for 404 and 410."""
    try:
        return request()
    except UserError:
        raise
    except Exception as error:  # the client raises its own, requests', retrying's and pydicom's
        status = _status_of(error)
        if status in (404, 410):
            raise FileNotFoundError(f"HTTP status {status}") from None
        raise OSError(f"HTTP status {status}" if status else type(error).__name__) from None


def _status_of(error: Exception) -> int | None:
    """The HTTP status behind an error of requests, or of `retrying` when it gave up."""
    response = getattr(error, "response", None)
    if response is None:
        response = getattr(getattr(error, "last_attempt", None), "value", None)
    return getattr(response, "status_code", None)


def _read_headers(path: Path) -> dict[str, str]:
    """Lines "Name: value"; empty ones and those that begin with # are left out. Errors: UserError, which quotes nothing."""
    try:
        lines: Iterable[str] = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The file with headers '{path}' cannot be read ({type(error).__name__}). It must be ASCII text."
        ) from None
    headers = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise UserError(
                f"Line {number} of the file with headers '{path}' is not 'Name: value'. Write one header a line."
            )
        headers[name] = value.strip()
    return headers


def _text(answer: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in the DICOM JSON model (PS3.18 annex F), "" where there is none."""
    attribute = answer.get(tag)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """The client logs UIDs, and pydicom warns with values."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, before):
            logger.disabled = was
