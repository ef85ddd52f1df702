"""What kind of object a DICOM object is, by its SOP class: never by its Modality, which is free to lie (PS3.4 B.5).

Each storage class of the standard is in one of three tables, by its keyword and on purpose. A class that is in none, a
vendor's own or a later edition's, is what its elements make of it: an image where it has pixel data.
"""

from __future__ import annotations

from pydicom.uid import UID


def _keywords(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Pixels of something that was looked at: acquired, reconstructed, photographed, or a picture of a picture.
IMAGES = _keywords(
    """
    BreastProjectionXRayImageStorageForPresentation BreastProjectionXRayImageStorageForProcessing
    BreastTomosynthesisImageStorage ComputedRadiographyImageStorage ConfocalMicroscopyImageStorage
    ConfocalMicroscopyTiledPyramidalImageStorage CTImageStorage DermoscopicPhotographyImageStorage
    DICOS2DAITStorage DICOS3DAITStorage DICOSCTImageStorage DICOSDigitalXRayImageStorageForPresentation
    DICOSDigitalXRayImageStorageForProcessing
    DigitalIntraOralXRayImageStorageForPresentation DigitalIntraOralXRayImageStorageForProcessing
    DigitalMammographyXRayImageStorageForPresentation DigitalMammographyXRayImageStorageForProcessing
    DigitalXRayImageStorageForPresentation DigitalXRayImageStorageForProcessing
    EddyCurrentImageStorage EddyCurrentMultiFrameImageStorage
    EnhancedContinuousRTImageStorage EnhancedCTImageStorage EnhancedMRColorImageStorage EnhancedMRImageStorage
    EnhancedPETImageStorage EnhancedRTImageStorage EnhancedUSVolumeStorage EnhancedXAImageStorage
    EnhancedXRFImageStorage HardcopyColorImageStorage HardcopyGrayscaleImageStorage
    IntravascularOpticalCoherenceTomographyImageStorageForPresentation
    IntravascularOpticalCoherenceTomographyImageStorageForProcessing
    LegacyConvertedEnhancedCTImageStorage LegacyConvertedEnhancedMRImageStorage LegacyConvertedEnhancedPETImageStorage
    MRImageStorage MultiFrameGrayscaleByteSecondaryCaptureImageStorage
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage MultiFrameSingleBitSecondaryCaptureImageStorage
    MultiFrameTrueColorSecondaryCaptureImageStorage NuclearMedicineImageStorage NuclearMedicineImageStorageRetired
    OphthalmicOpticalCoherenceTomographyEnFaceImageStorage OphthalmicPhotography16BitImageStorage
    OphthalmicPhotography8BitImageStorage OphthalmicTomographyImageStorage PhotoacousticImageStorage
    PositronEmissionTomographyImageStorage RTImageStorage SecondaryCaptureImageStorage UltrasoundImageStorage
    UltrasoundImageStorageRetired UltrasoundMultiFrameImageStorage UltrasoundMultiFrameImageStorageRetired
    VideoEndoscopicImageStorage VideoMicroscopicImageStorage VideoPhotographicImageStorage VLEndoscopicImageStorage
    VLImageStorageTrial VLMicroscopicImageStorage VLMultiFrameImageStorageTrial VLPhotographicImageStorage
    VLSlideCoordinatesMicroscopicImageStorage VLWholeSlideMicroscopyImageStorage
    WideFieldOphthalmicPhotography3DCoordinatesImageStorage
    WideFieldOphthalmicPhotographyStereographicProjectionImageStorage
    XRay3DAngiographicImageStorage XRay3DCraniofacialImageStorage XRayAngiographicBiPlaneImageStorage
    XRayAngiographicImageStorage XRayRadiofluoroscopicImageStorage
    """
)

# Pixels that were computed rather than acquired, whatever Image Type says: segmentations, dose, maps.
COMPUTED_IMAGES = _keywords(
    """
    CornealTopographyMapStorage OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage
    OphthalmicThicknessMapStorage ParametricMapStorage RTDoseStorage SegmentationStorage
    """
)

# Reports, plans, presentation states, waveforms, documents, measurements, raw data …: nothing to look at.
NOT_IMAGES = _keywords(
    """
    AcquisitionContextSRStorage AdvancedBlendingPresentationStateStorage AmbulatoryECGWaveformStorage
    ArterialPulseWaveformStorage AudioSRStorageTrial AutorefractionMeasurementsStorage BasicStructuredDisplayStorage
    BasicTextSRStorage BasicVoiceAudioWaveformStorage BlendingSoftcopyPresentationStateStorage
    BodyPositionWaveformStorage CArmPhotonElectronRadiationRecordStorage CArmPhotonElectronRadiationStorage
    CardiacElectrophysiologyWaveformStorage ChestCADSRStorage ColonCADSRStorage ColorPaletteStorage
    ColorSoftcopyPresentationStateStorage CompositingPlanarMPRVolumetricPresentationStateStorage
    Comprehensive3DSRStorage ComprehensiveSRStorage ComprehensiveSRStorageTrial ContentAssessmentResultsStorage
    CTDefinedProcedureProtocolStorage CTPerformedProcedureProtocolStorage DeformableSpatialRegistrationStorage
    DetailSRStorageTrial DICOSQuadrupoleResonanceStorage DICOSThreatDetectionReportStorage ElectromyogramWaveformStorage
    ElectrooculogramWaveformStorage EncapsulatedCDAStorage EncapsulatedMTLStorage EncapsulatedOBJStorage
    EncapsulatedPDFStorage EncapsulatedSTLStorage EnhancedSRStorage EnhancedXRayRadiationDoseSRStorage
    ExtensibleSRStorage General32bitECGWaveformStorage GeneralAudioWaveformStorage GeneralECGWaveformStorage
    GenericImplantTemplateStorage GrayscalePlanarMPRVolumetricPresentationStateStorage
    GrayscaleSoftcopyPresentationStateStorage HangingProtocolStorage HemodynamicWaveformStorage
    ImplantAssemblyTemplateStorage ImplantationPlanSRStorage ImplantTemplateGroupStorage
    IntraocularLensCalculationsStorage InventoryStorage KeratometryMeasurementsStorage KeyObjectSelectionDocumentStorage
    LensometryMeasurementsStorage MacularGridThicknessAndVolumeReportStorage MammographyCADSRStorage
    MediaStorageDirectoryStorage MicroscopyBulkSimpleAnnotationsStorage MRSpectroscopyStorage
    MultichannelRespiratoryWaveformStorage MultipleVolumeRenderingVolumetricPresentationStateStorage
    OphthalmicAxialMeasurementsStorage OphthalmicVisualFieldStaticPerimetryMeasurementsStorage
    PatientRadiationDoseSRStorage PerformedImagingAgentAdministrationSRStorage
    PlannedImagingAgentAdministrationSRStorage ProcedureLogStorage ProtocolApprovalStorage
    PseudoColorSoftcopyPresentationStateStorage RadiopharmaceuticalRadiationDoseSRStorage RawDataStorage
    RealWorldValueMappingStorage RespiratoryWaveformStorage RoboticArmRadiationStorage RoboticRadiationRecordStorage
    RoutineScalpElectroencephalogramWaveformStorage RTBeamsDeliveryInstructionStorage
    RTBeamsDeliveryInstructionStorageTrial RTBeamsTreatmentRecordStorage
    RTBrachyApplicationSetupDeliveryInstructionStorage RTBrachyTreatmentRecordStorage
    RTIonBeamsTreatmentRecordStorage RTIonPlanStorage RTPatientPositionAcquisitionInstructionStorage
    RTPhysicianIntentStorage RTPlanStorage RTRadiationRecordSetStorage RTRadiationSalvageRecordStorage
    RTRadiationSetDeliveryInstructionStorage RTRadiationSetStorage RTSegmentAnnotationStorage RTStructureSetStorage
    RTTreatmentPreparationStorage RTTreatmentSummaryRecordStorage
    SegmentedVolumeRenderingVolumetricPresentationStateStorage SimplifiedAdultEchoSRStorage
    SleepElectroencephalogramWaveformStorage SpatialFiducialsStorage SpatialRegistrationStorage
    SpectaclePrescriptionReportStorage StandaloneCurveStorage StandaloneModalityLUTStorage StandaloneOverlayStorage
    StandalonePETCurveStorage StandaloneVOILUTStorage StereometricRelationshipStorage StoredPrintStorage
    SubjectiveRefractionMeasurementsStorage SurfaceScanMeshStorage SurfaceScanPointCloudStorage
    SurfaceSegmentationStorage TextSRStorageTrial TomotherapeuticRadiationRecordStorage TomotherapeuticRadiationStorage
    TractographyResultsStorage TwelveLeadECGWaveformStorage VariableModalityLUTSoftcopyPresentationStateStorage
    VisualAcuityMeasurementsStorage VolumeRenderingVolumetricPresentationStateStorage WaveformAnnotationSRStorage
    WaveformStorageTrial XADefinedProcedureProtocolStorage XAPerformedProcedureProtocolStorage
    XAXRFGrayscaleSoftcopyPresentationStateStorage XRayRadiationDoseSRStorage
    """
)

_SECONDARY_CAPTURES = frozenset(keyword for keyword in IMAGES if "SecondaryCapture" in keyword)
_ANGIOGRAPHY = _keywords(
    "XRayAngiographicBiPlaneImageStorage XRayAngiographicImageStorage XRayRadiofluoroscopicImageStorage"
)
_PRINTS = _keywords("HardcopyColorImageStorage HardcopyGrayscaleImageStorage")
_ULTRASOUND = _keywords(
    """
    UltrasoundImageStorage UltrasoundImageStorageRetired UltrasoundMultiFrameImageStorage
    UltrasoundMultiFrameImageStorageRetired
    """
)


def is_known(sop_class: str) -> bool:
    """Whether the standard has this SOP class."""
    return UID(sop_class).type == "SOP Class" if sop_class else False


def is_not_image(sop_class: str) -> bool:
    """Whether objects of the class are no images, whatever they hold: SR, KO, PR, PDF, plans, waveforms, DICOMDIR …"""
    return _keyword(sop_class) in NOT_IMAGES


def is_computed(sop_class: str) -> bool:
    """Whether the pixels were computed rather than acquired: segmentations, dose, maps."""
    return _keyword(sop_class) in COMPUTED_IMAGES


def is_angiography(sop_class: str) -> bool:
    """Whether objects of the class have the X-Ray Image Module: XA and XRF, not their enhanced kinds."""
    return _keyword(sop_class) in _ANGIOGRAPHY


def is_secondary_capture(sop_class: str) -> bool:
    """Whether it is a screenshot, a scan of film, a dose report page …, single frame or multi-frame."""
    return _keyword(sop_class) in _SECONDARY_CAPTURES


def often_has_text(sop_class: str) -> bool:
    """Whether text in the pixels is usual: screenshots, prints and ultrasound."""
    return _keyword(sop_class) in _SECONDARY_CAPTURES | _PRINTS | _ULTRASOUND


def _keyword(sop_class: str) -> str:
    return UID(sop_class).keyword if sop_class else ""
