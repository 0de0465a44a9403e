"""The feature gates that kube-proxy 1.36 accepts, of which nearly all are other components' and have no effect here.

Every component of Kubernetes accepts all gates, so that one list serves them all; unknown names, and other values of
locked gates, are refused. Source: the feature gates reference of Kubernetes and the gates' lifecycle
lists in its repository. Gates that have since been removed from Kubernetes are still accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

ALLOW_EXTERNAL_IPS = "AllowServiceExternalIPs"
"""False means that Services' externalIPs are not served."""
WATCH_LIST_CLIENT = "WatchListClient"
"""client-go's gate; false means that lists of the API server are read in pages, not streamed."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What these gates switch on is always on here.
_ALWAYS_ON = _names("""
ComponentFlagz ComponentSLIs ComponentStatusz ContextualLogging MultiCIDRServiceAllocator NFTablesProxyMode
PreferSameTrafficDistribution ServiceTrafficDistribution TopologyAwareHints
""")

_LOCKED_ON = _names("""
APIServerTracing AggregatedDiscoveryRemoveBetaType AnonymousAuthConfigurableEndpoints AnyVolumeDataSource
AuthorizeNodeWithSelectors AuthorizeWithSelectors BtreeWatchCache CPUManagerPolicyOptions CRDValidationRatcheting
CSIMigrationPortworx ComponentSLIs ConsistentListFromCache CronJobsScheduledAnnotation CustomResourceFieldSelectors
DRAAdminAccess DevicePluginCDIDevices DisableAllocatorDualWrite DynamicResourceAllocation ElasticIndexedJob
ExecProbeTimeout HonorPVReclaimPolicy ImageMaximumGCAge InPlacePodVerticalScaling JobBackoffLimitPerIndex JobManagedBy
JobPodReplacementPolicy JobSuccessPolicy KubeletCgroupDriverFromCRI KubeletTracing LogarithmicScaleDown
MatchLabelKeysInPodAffinity MemoryManager MultiCIDRServiceAllocator NFTablesProxyMode
NodeInclusionPolicyInPodTopologySpread NodeSwap OrderedNamespaceDeletion PodLifecycleSleepAction
PodLifecycleSleepActionAllowZero PodObservedGenerationTracking PodSchedulingReadiness PreferSameTrafficDistribution
RecoverVolumeExpansionFailure RecursiveReadOnlyMounts RelaxedDNSSearchValidation RelaxedEnvironmentVariableValidation
ResilientWatchCacheInitialization RetryGenerateName SchedulerQueueingHints SeparateTaintEvictionController
ServiceAccountTokenJTI ServiceAccountTokenNodeBinding ServiceAccountTokenNodeBindingValidation
ServiceAccountTokenPodNodeInfo ServiceTrafficDistribution SidecarContainers StreamingCollectionEncodingToJSON
StreamingCollectionEncodingToProtobuf StructuredAuthenticationConfiguration StructuredAuthorizationConfiguration
SupplementalGroupsPolicy SystemdWatchdog TopologyAwareHints VolumeAttributesClass WinDSR WinOverlay
""")
_LOCKED_OFF = _names("""
AllowOverwriteTerminationGracePeriodSeconds AllowServiceLBStatusOnNonLB WatchFromStorageWithoutResourceVersion
""")
_FREE = _names("""
APIResponseCompression APIServerIdentity APIServingWithRoutine AllAlpha AllBeta AllowDNSOnlyNodeCSR
AllowInsecureKubeletCertificateSigningRequests AllowParsingUserUIDFromCertAuth AllowServiceExternalIPs
AllowUnsafeMalformedObjectDeletion AuthorizePodWebsocketUpgradeCreatePermission CBORServingAndStorage CPUCFSQuotaPeriod
CPUManagerPolicyAlphaOptions CPUManagerPolicyBetaOptions CRDObservedGenerationTracking CRIListStreaming
CSIServiceAccountTokenSecrets CSIVolumeHealth ChangeContainerStatusOnKubeletRestart
ClearingNominatedNodeNameAfterBinding ClientsAllowCBOR ClientsPreferCBOR
CloudControllerManagerWatchBasedRoutesReconciliation CloudControllerManagerWebhook ClusterTrustBundle
ClusterTrustBundleProjection ComponentFlagz ComponentStatusz ConcurrentWatchObjectDecode ConstrainedImpersonation
ContainerCheckpoint ContainerRestartRules ContainerStopSignals ContextualLogging CoordinatedLeaderElection
CrossNamespaceVolumeDataSource CustomCPUCFSQuotaPeriod DRAConsumableCapacity DRADeviceBindingConditions
DRADeviceTaintRules DRADeviceTaints DRAExtendedResource DRAListTypeAttributes DRANodeAllocatableResources
DRAPartitionableDevices DRAPrioritizedList DRAResourceClaimDeviceStatus DRAResourceClaimGranularStatusAuthorization
DRASchedulerFilterTimeout DRAWorkloadResourceClaims DeclarativeValidation DeclarativeValidationBeta
DeclarativeValidationTakeover DeploymentReplicaSetTerminatingReplicas DetectCacheInconsistency
DisableCPUQuotaWithExclusiveCPUs DisableNodeKubeProxyVersion EnvFiles EventedPLEG ExternalServiceAccountTokenSigner
GangScheduling GenericWorkload GitRepoVolumeDriver GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority
HPAConfigurableTolerance HPAExternalMetricFallback HPAScaleToZero HostnameOverride ImageVolume ImageVolumeWithDigest
InOrderInformers InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling
InPlacePodVerticalScalingAllocatedStatus InPlacePodVerticalScalingExclusiveCPUs
InPlacePodVerticalScalingExclusiveMemory InTreePluginPortworxUnregister InformerResourceVersion KMSv1
KubeletCrashLoopBackOffMax KubeletEnsureSecretPulledImages KubeletFineGrainedAuthz KubeletInUserNamespace KubeletPSI
KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletPodResourcesListUseActivePods
KubeletRegistrationGetOnExistsOnly KubeletSeparateDiskGC KubeletServiceAccountTokenForCredentialProviders
LegacySidecarContainers ListFromCacheSnapshot LocalStorageCapacityIsolationFSQuotaMonitoring LoggingAlphaOptions
LoggingBetaOptions MatchLabelKeysInPodTopologySpread MatchLabelKeysInPodTopologySpreadSelectorMerge
MaxUnavailableStatefulSet MemoryQoS MutableCSINodeAllocatableCount MutablePVNodeAffinity
MutablePodResourcesForSuspendedJobs MutableSchedulingDirectivesForSuspendedJobs MutatingAdmissionPolicy NativeHistograms
NodeDeclaredFeatures NodeLogQuery NominatedNodeNameForExpectation OpenAPIEnums OpportunisticBatching
PodAndContainerStatsFromCRI PodCertificateRequest PodDeletionCost PodLevelResources PodLogsQuerySplitStreams
PodReadyToStartContainersCondition PodTopologyLabelsAdmission PortForwardWebsockets PreventStaticPodAPIReferences
ProcMountType QOSReserved ReduceDefaultCrashLoopBackOffDecay RelaxedServiceNameValidation
ReloadKubeletServerCertificateFile RemoteRequestHeaderUID ResourceHealthStatus RestartAllContainersOnContainerExits
RotateKubeletServerCertificate RuntimeClassInImageCriApi SELinuxChangePolicy SELinuxMount SELinuxMountReadWriteOncePod
SchedulerAsyncAPICalls SchedulerAsyncPreemption SchedulerPopFromBackoffQ SeparateCacheWatchRPC
ServiceAccountNodeAudienceRestriction SizeBasedListCostEstimate StatefulSetSemanticRevisionComparison
StorageCapacityScoring StorageNamespaceIndex StorageVersionAPI StorageVersionHash StorageVersionMigrator
StrictIPCIDRValidation StructuredAuthenticationConfigurationEgressSelector
StructuredAuthenticationConfigurationJWKSMetrics TaintTolerationComparisonOperators
TokenRequestServiceAccountUIDValidation TopologyAwareWorkloadScheduling TopologyManagerPolicyAlphaOptions
TopologyManagerPolicyBetaOptions TopologyManagerPolicyOptions TranslateStreamCloseWebsocketRequests
UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy UserNamespacesHostNetworkSupport
UserNamespacesSupport VolumeLimitScaling WatchCacheInitializationPostStartHook WatchList WatchListClient
WindowsCPUAndMemoryAffinity WindowsGracefulNodeShutdown WindowsHostNetwork WorkloadAwarePreemption WorkloadWithJob
""")

LOCKED: Mapping[str, bool] = {**dict.fromkeys(_LOCKED_ON, True), **dict.fromkeys(_LOCKED_OFF, False)}
"""The gates that allow one value only, and that value."""
KNOWN = frozenset({*LOCKED, *_FREE})


def problems(given: Mapping[str, bool]) -> Iterator[tuple[str, str]]:
    """The problems of the gates GIVEN, as (name, reason)."""
    for name, value in given.items():
        if name not in KNOWN:
            near = next((known for known in KNOWN if known.lower() == name.lower()), None)
            yield name, f"unrecognized feature gate{f' (is {near} meant?)' if near else ''}"
        elif LOCKED.get(name, value) is not value:
            yield name, f"cannot be set to {_word(value)}, the feature is locked to {_word(LOCKED[name])}"


def idle(given: Mapping[str, bool]) -> list[str]:
    """The gates among GIVEN that have no effect here, although they ask for a change."""
    return [
        name
        for name, value in given.items()
        if name not in (ALLOW_EXTERNAL_IPS, WATCH_LIST_CLIENT)
        and LOCKED.get(name) is not value
        and not (value and name in _ALWAYS_ON)
    ]


def _word(value: bool) -> str:
    return "true" if value else "false"
