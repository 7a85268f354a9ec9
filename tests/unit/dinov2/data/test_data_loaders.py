"""Data set strings, samplers by type, and loaders."""

import multiprocessing
import os
import pickle
import signal

import pytest
import torch
from PIL import Image
from torch.utils.data import DistributedSampler

from dinov2.data import SamplerType, loaders, make_data_loader, make_dataset
from dinov2.data.registry import DATASETS
from dinov2.utils.errors import UserError


class Numbers:
    """Items 0 to n - 1."""

    def __init__(self, n=10):
        self.n = n

    def __getitem__(self, index):
        return int(index)

    def __len__(self):
        return self.n


class Recording(Numbers):
    """A data set that keeps the keywords it was made with."""

    def __init__(self, *, root, extra="none", split=None, transform=None, target_transform=None):
        super().__init__()
        self.given = {"root": root, "extra": extra, "split": split}


class Draws(Numbers):
    """Items that are draws from torch's global generator."""

    def __getitem__(self, index):
        return torch.rand(1)


class Threads(Numbers):
    """Items that say how many threads torch uses."""

    def __getitem__(self, index):
        return torch.get_num_threads()


@pytest.fixture
def recording(monkeypatch):
    """The name `Recording`, known as long as the test lasts."""
    monkeypatch.setitem(DATASETS._objects, "Recording", Recording)


def load(dataset, n=10, **options):
    options = {"batch_size": 2, "num_workers": 0, **options}
    loader = iter(make_data_loader(dataset=dataset, **options))
    return [next(loader).tolist() for _ in range(n)]


# --- strings


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("Recording:root=/data", {"root": "/data"}),
        ("Recording:root=/data:split=train:extra=/x", {"root": "/data", "split": "train", "extra": "/x"}),
        ("Recording:split=train:root=C:\\data\\x", {"root": "C:\\data\\x", "split": "train"}),
        ("Recording:root=s3://bucket/a=b/c:split=val", {"root": "s3://bucket/a=b/c", "split": "val"}),
        ("Recording:root=/d/12:30:05", {"root": "/d/12:30:05"}),
    ],
)
def test_values_may_hold_colons_and_equal_signs(recording, text, given):
    assert make_dataset(dataset_str=text).given == {"extra": "none", "split": None, **given}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Recordin:root=x", "Unknown data set 'Recordin'. Did you mean 'Recording'"),
        ("Recording:rot=x", "no key 'rot'. Did you mean 'root'\\? Keys: root, extra, split"),
        ("Recording:root=x:transform=y", "no key 'transform'"),
        ("Recording:root=x:root=y", "given twice"),
        ("Recording:root=", "has no value"),
        ("Recording", "needs the key 'root'"),
        ("Recording:/data", "cannot read ':/data' as key=value"),
    ],
)
def test_a_wrong_string_is_answered_with_what_is_allowed(recording, text, reason):
    with pytest.raises(UserError, match=reason):
        make_dataset(dataset_str=text)


def test_an_image_folder_is_made_from_its_string(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "1.png")
    dataset = make_dataset(dataset_str=f"ImageFolder:root={tmp_path}", transform=lambda image: image.size)
    assert dataset[0] == ((4, 3), 0)


def test_transforms_are_set_on_a_data_set_that_does_not_offer_them(recording):
    assert make_dataset(dataset_str="Recording:root=x", transform=str).transform is str


def test_a_sample_transform_can_be_pickled_and_takes_the_pair():
    transform = pickle.loads(pickle.dumps(loaders._make_sample_transform(str, float)))
    assert transform((1, 2)) == ("1", 2.0)


def test_a_boolean_is_said_in_words():
    assert [loaders._make_bool_str(b) for b in (True, False)] == ["yes", "no"]


# --- samplers


@pytest.mark.parametrize("sampler_type", [t for t in SamplerType if t.name != "EPOCH"])
def test_a_sampler_size_is_only_for_epochs(sampler_type):
    with pytest.raises(ValueError, match="only for the sampler EPOCH"):
        loaders._make_sampler(dataset=Numbers(), type=sampler_type, size=3)


def test_an_advance_is_not_for_the_distributed_sampler():
    with pytest.raises(ValueError, match="not for the sampler DISTRIBUTED"):
        loaders._make_sampler(dataset=Numbers(), type=SamplerType.DISTRIBUTED, advance=1)


def test_an_advance_is_not_implemented_for_epochs():
    with pytest.raises(NotImplementedError):
        loaders._make_sampler(dataset=Numbers(), type=SamplerType.EPOCH, advance=1)


def test_sampler_types_keep_the_official_numbers():
    names = ["DISTRIBUTED", "EPOCH", "INFINITE", "SHARDED_INFINITE", "SHARDED_INFINITE_NEW"]
    assert [SamplerType[name].value for name in names] == [0, 1, 2, 3, 4]


def test_the_distributed_sampler_works_without_a_process_group():
    sampler = loaders._make_sampler(dataset=Numbers(), type=SamplerType.DISTRIBUTED)
    assert isinstance(sampler, DistributedSampler)
    assert list(sampler) == list(range(10))


def test_no_sampler_goes_through_the_data_set_in_order_whatever_shuffle_says():
    assert load(Numbers(), 5, sampler_type=None, shuffle=True) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_an_epoch_may_be_shorter_than_the_data_set():
    loader = make_data_loader(
        dataset=Numbers(), batch_size=2, num_workers=0, sampler_type=SamplerType.EPOCH, sampler_size=4
    )
    assert len(list(loader)) == 2


@pytest.mark.parametrize("sampler_type", [SamplerType.INFINITE, SamplerType.SEEDED_INFINITE])
def test_an_advanced_loader_goes_on_where_the_other_would(sampler_type):
    whole = load(Numbers(), 20, sampler_type=sampler_type, seed=3)
    assert load(Numbers(), 12, sampler_type=sampler_type, seed=3, sampler_advance=16) == whole[8:]


@pytest.mark.parametrize("sampler_type", [SamplerType.SHARDED_INFINITE, SamplerType.SHARDED_INFINITE_NEW])
def test_a_sharded_loader_can_be_advanced_exactly(sampler_type):
    options = {"sampler_type": sampler_type, "seed": 3, "sampler_advance_by_rank": True}
    assert load(Numbers(), 12, **options, sampler_advance=26) == load(Numbers(), 25, **options)[13:]


# --- loaders


def test_persistent_workers_without_workers_is_not_an_error():
    assert len(load(Numbers(), 1, persistent_workers=True)) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory is pinned where there is a GPU")
def test_memory_is_not_pinned_without_a_gpu():
    assert not make_data_loader(dataset=Numbers(), batch_size=2, num_workers=0).pin_memory


def test_making_and_starting_a_loader_takes_no_draw_from_the_global_generator():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    load(Numbers(), 3)
    assert torch.rand(1) == expected


def test_workers_are_seeded_by_the_loaders_seed_and_advance():
    def draws(**options):
        return load(Draws(), 2, num_workers=1, **options)

    assert draws(seed=1) == draws(seed=1)
    assert draws(seed=1) != draws(seed=2)
    assert draws(seed=1) != draws(seed=1, sampler_advance=2)


def test_a_worker_uses_one_thread():
    assert load(Threads(), 1, num_workers=1) == [[1, 1]]


class Signalled:
    """Each sample comes with signals to whoever makes it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        return index


def test_a_worker_outlives_the_signals_that_a_scheduler_sends_to_all_and_ends_with_its_loader():
    loader = make_data_loader(dataset=Signalled(), batch_size=2, num_workers=1, sampler_type=None)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert multiprocessing.active_children() == []
