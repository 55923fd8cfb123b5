"""
The feature extractor in the library's common tests; `tests/test_common_transformers.py` runs this file in a process of
its own, with the fetched tests on the path.
"""

import unittest

from transformers_common_tests.test_feature_extraction_common import FeatureExtractionSavingTestMixin

from tablet_hf import TabletFeatureExtractor


class TabletFeatureExtractionTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = TabletFeatureExtractor
    feat_extract_dict = {  # noqa: RUF012  (the library's way)
        "autoencoder": "somebody/some-autoencoder",
        "autoencoder_revision": "0123456789abcdef",
        "autoencoder_subfolder": "vae",
        "signal": "percent_change",
        "scaling": "percentile",
        "volume_size": 64,
        "token_size": 96,
        "grid_size": 8,
    }
