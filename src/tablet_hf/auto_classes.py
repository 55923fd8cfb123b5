"""TABLeT in the Auto classes and the pipelines of transformers."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_tablet import TabletConfig
from .feature_extraction_tablet import TabletFeatureExtractor
from .modeling_tablet import TabletForMaskedTokenModeling, TabletForSequenceClassification, TabletModel
from .pipeline_tablet import FmriClassificationPipeline, FmriFeatureExtractionPipeline

# By task, the class of the pipeline and the Auto class that loads its model.
PIPELINES = {
    "fmri-classification": (FmriClassificationPipeline, AutoModelForSequenceClassification),
    "fmri-feature-extraction": (FmriFeatureExtractionPipeline, AutoModel),
}


def register_auto_classes() -> None:
    """Register TABLeT with transformers. `import tablet_hf` calls this."""
    AutoConfig.register(TabletConfig.model_type, TabletConfig, exist_ok=True)
    AutoModel.register(TabletConfig, TabletModel, exist_ok=True)
    AutoModelForPreTraining.register(TabletConfig, TabletForMaskedTokenModeling, exist_ok=True)
    AutoModelForSequenceClassification.register(TabletConfig, TabletForSequenceClassification, exist_ok=True)
    AutoFeatureExtractor.register(TabletConfig, TabletFeatureExtractor, exist_ok=True)
    for task, (pipeline_class, auto_class) in PIPELINES.items():
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=auto_class, type="multimodal")
