"""Promises of SOP classes: every storage class of the standard is an image, a computed one or none, on purpose."""

from __future__ import annotations

import pytest
from pydicom.uid import UID, UID_dictionary

from deepmcat_core import sop_classes

# What stands among the storage classes, by UID or by name, and is a service: nothing of it is ever a file.
SERVICES = {
    "InventoryCreation", "InventoryFind", "InventoryGet", "InventoryMove", "ProtocolApprovalInformationModelFind",
    "ProtocolApprovalInformationModelGet", "ProtocolApprovalInformationModelMove", "RepositoryQuery",
    "StorageCommitmentPullModel", "StorageCommitmentPushModel",
}  # fmt: skip

TABLES = (sop_classes.IMAGES, sop_classes.COMPUTED_IMAGES, sop_classes.NOT_IMAGES)


def storage_classes() -> set[str]:
    """The keywords of the storage classes that pydicom's dictionary names; it has retired UIDs without a name too."""
    classes = {uid: keyword for uid, (_, kind, _, _, keyword) in UID_dictionary.items() if kind == "SOP Class"}
    stored = {
        keyword
        for uid, keyword in classes.items()
        if "Storage" in keyword or uid.startswith("1.2.840.10008.5.1.4.1.1.")
    }
    return stored - SERVICES - {""}


def test_every_storage_class_has_been_decided():
    """A class that a later pydicom knows fails here until somebody says what it is; one that it drops, too."""
    assert set().union(*TABLES) == storage_classes()


def test_no_class_is_of_two_kinds():
    """The tables do not overlap."""
    assert sum(len(table) for table in TABLES) == len(set().union(*TABLES))


def test_what_is_called_an_image_is_one():
    """No class with Image in its name is refused."""
    assert {keyword for keyword in sop_classes.NOT_IMAGES if "Image" in keyword} == set()


def test_what_is_not_an_image_is_known_by_its_uid():
    """The tables have keywords and files have UIDs."""
    by_uid = {uid: entry[4] for uid, entry in UID_dictionary.items()}

    assert {by_uid[uid] for uid in by_uid if sop_classes.is_not_image(uid)} == sop_classes.NOT_IMAGES
    assert {by_uid[uid] for uid in by_uid if sop_classes.is_computed(uid)} == sop_classes.COMPUTED_IMAGES


@pytest.mark.parametrize("sop_class", ["", "1.3.12.2.1107.5.9.1", "1.2.840.10008.1.1"])
def test_an_unknown_class_is_judged_by_its_elements(sop_class):
    """Vendors have classes of their own, and some are of images; a service's class says nothing about an object."""
    assert not sop_classes.is_not_image(sop_class)
    assert not sop_classes.is_secondary_capture(sop_class)


@pytest.mark.parametrize(
    ("sop_class", "usual"),
    [
        ("1.2.840.10008.5.1.4.1.1.7.4", True),  # Multi-frame True Color Secondary Capture
        ("1.2.840.10008.5.1.4.1.1.3", True),  # Ultrasound Multi-frame, retired
        ("1.2.840.10008.5.1.1.30", True),  # Hardcopy Color
        ("1.2.840.10008.5.1.4.1.1.2", False),
    ],
)
def test_text_is_usual_in_screenshots_prints_and_ultrasound(sop_class, usual):
    """Retired classes included: archives are full of them."""
    assert UID(sop_class).type == "SOP Class"
    assert sop_classes.often_has_text(sop_class) is usual
