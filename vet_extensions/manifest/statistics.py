"""One page about a manifest: what its images show, how large they are, how they came, and how findings lie over the splits.

`statistics_page` gives self-contained HTML (no script, no other file) with bars drawn by CSS; it holds counts, no identifier.
Used by `vetdino stats OUT --html FILE`.
"""

import html
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vet_extensions.manifest.io import MISSING, Manifest
from vet_extensions.schema import Split

NOT_STATED = "(not stated)"
MAX_ROWS = 20
_SPLITS = [str(split) for split in Split]

Counts = list[tuple[str, int]]

_TEXT_COLUMNS = {
    "view": "View",
    "view_source": "Rule that decided the view",
    "species": "Species",
    "body_part": "Body part",
    "laterality": "Laterality",
    "photometric": "Photometric interpretation",
    "transfer_syntax": "Transfer syntax",
}

_STYLE = """
:root { --ink: #1d2733; --soft: #5c6b7a; --line: #dfe5ea; --bar: #3b7ea1; --page: #f6f8f9; --card: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #9aa8b5; --line: #33404c; --bar: #5fa8cc; --page: #151b21; --card: #1e262e } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto; max-width: 75rem;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1rem; margin: 0 0 .6rem }
.sub { color: var(--soft); margin: .2rem 0 1.4rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; overflow-x: auto }
section.wide { grid-column: 1 / -1 }
table { border-collapse: collapse; width: 100% }
td, th { padding: .15rem .4rem; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 5rem }
th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--line) }
td.bar { width: 40% } td.bar div { background: var(--bar); height: .75rem; border-radius: 2px; min-width: 1px }
"""


def statistics_page(manifest: Manifest) -> str:
    """The page as HTML text."""
    cards = [_split_card(manifest)]
    for column, title in _TEXT_COLUMNS.items():
        if column in manifest.column_names:
            cards.append(_bars(title, _text_counts(manifest, column), manifest.n_images))
    for title, counts in _shape_counts(manifest).items():
        cards.append(_bars(title, counts, sum(n for _, n in counts)))
    if manifest.label_names:
        cards.append(_label_card(manifest))
    patients = int(manifest.patient_codes[-1]) + 1 if manifest.n_images else 0
    sub = f"{manifest.n_images:,} images of {manifest.n_studies:,} studies of {patients:,} patients"
    title = "What is in this intake folder"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>'
        f'<p class="sub">{sub} &middot; content hash {html.escape(manifest.content_hash)}</p>'
        f'<div class="cards">{"".join(cards)}</div></body></html>\n'
    )


def _text_counts(manifest: Manifest, column: str) -> Counts:
    values, codes = manifest.codes(column)
    counts = np.bincount(codes, minlength=len(values)).tolist()
    found = sorted(zip(values, counts, strict=True), key=lambda item: (-item[1], item[0]))
    shown = [(value or NOT_STATED, n) for value, n in found[:MAX_ROWS]]
    rest = sum(n for _, n in found[MAX_ROWS:])
    return [*shown, (f"{len(found) - MAX_ROWS} others", rest)] if rest else shown


def _shape_counts(manifest: Manifest) -> dict[str, Counts]:
    """Title -> counts of what is a number: images a study, studies a patient, sides, spacings, bits."""
    images_a_study = np.diff(manifest.study_offsets)
    first = manifest.study_offsets[:-1]
    studies_a_patient = np.bincount(manifest.patient_codes[first]) if manifest.n_images else np.zeros(0, dtype=np.int64)
    sides = {
        what: np.maximum(manifest.column(f"{prefix}rows"), manifest.column(f"{prefix}columns"))
        for what, prefix in (("Longest side in the source, px", ""), ("Longest side in the shards, px", "stored_"))
    }
    spacing = manifest.column("spacing_row_mm")
    return {
        "Images a study": _whole_numbers(images_a_study),
        "Studies a patient": _whole_numbers(studies_a_patient),
        **{title: _ranges(values) for title, values in sides.items()},
        "Pixel spacing in the shards, mm (rows)": _ranges(spacing),
        "Bits stored": _whole_numbers(manifest.column("bits_stored")),
    }


def _whole_numbers(values: np.ndarray, *, most: int = 12) -> Counts:
    """How often each number occurs; those above `most` different ones are put together."""
    numbers, counts = np.unique(values, return_counts=True)
    found = list(zip((f"{number:g}" for number in numbers.tolist()), counts.tolist(), strict=True))
    if len(found) <= most:
        return found
    return [*found[: most - 1], (f"{numbers[most - 1]:g} and more", int(counts[most - 1 :].sum()))]


def _ranges(values: np.ndarray, *, n_bins: int = 10) -> Counts:
    """Counts in equal ranges between the least and the greatest number, and of what is not stated."""
    known = values[np.isfinite(values)].astype(np.float64)
    missing = [(NOT_STATED, len(values) - len(known))] if len(known) < len(values) else []
    if len(np.unique(known)) <= n_bins:
        return [*_whole_numbers(known), *missing]
    counts, edges = np.histogram(known, bins=n_bins)
    digits = max(0, int(np.ceil(-np.log10(edges[1] - edges[0]))) + 1)
    names = [f"{low:.{digits}f} to {high:.{digits}f}" for low, high in pairwise(edges)]
    return [*zip(names, counts.tolist(), strict=True), *missing]


def _bars(title: str, counts: Counts, total: int) -> str:
    most = max((n for _, n in counts), default=1)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{n:,}</td><td>{100 * n / max(total, 1):.1f} %</td>"
        f'<td class="bar"><div style="width:{100 * n / max(most, 1):.1f}%"></div></td></tr>'
        for name, n in counts
    )
    return f"<section><h2>{html.escape(title)}</h2><table>{rows}</table></section>"


def _split_card(manifest: Manifest) -> str:
    values, codes = manifest.codes("split")
    rows = []
    for split in _SPLITS:
        here = codes == (values.index(split) if split in values else -1)
        patients, studies = (len(np.unique(code[here])) for code in (manifest.patient_codes, manifest.study_codes))
        rows.append([split, f"{patients:,}", f"{studies:,}", f"{int(here.sum()):,}"])
    return _table("Split, by patient", ["", "patients", "studies", "images"], rows)


def _label_card(manifest: Manifest) -> str:
    """Present, absent, uncertain and not stated images of each finding, and how many are present in each split."""
    labels = manifest.labels()
    values, codes = manifest.codes("split")
    rows = []
    for place, name in enumerate(manifest.label_names):
        cells = labels[:, place]
        kinds = [int((cells == kind).sum()) for kind in (1, 0, -1, MISSING)]
        present = pa.DictionaryArray.from_arrays(pa.array(codes[cells == 1]), pa.array(values, pa.string()))
        of_split = {item["values"]: item["counts"] for item in pc.value_counts(present.cast(pa.string())).to_pylist()}
        share = kinds[0] / max(1, kinds[0] + kinds[1])
        numbers = [*kinds, *(of_split.get(split, 0) for split in _SPLITS)]
        rows.append([name, *(f"{n:,}" for n in numbers[:4]), f"{100 * share:.1f} %", *(f"{n:,}" for n in numbers[4:])])
    head = ["finding", "present", "absent", "uncertain", "not stated", "present of known"]
    return _table("Labels, images", [*head, *(f"present in {split}" for split in _SPLITS)], rows, wide=True)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, wide: bool = False) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    kind = ' class="wide"' if wide else ""
    return f"<section{kind}><h2>{html.escape(title)}</h2><table><tr>{names}</tr>{cells}</table></section>"
