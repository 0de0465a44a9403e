"""The feature gates of Kubernetes with the minors that know them, and those that have an effect here.

kube-proxy refuses gates that it does not know and other values of locked ones, while components of several minors are
often given one list. So a gate is accepted that any minor from 1.30 to the newest one followed knows.
Sources: the feature gates reference of Kubernetes 1.30 to 1.38, and the gates' lifecycle lists in its repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from kproxy.config import minors
from kproxy.config.minors import KubernetesMinor

ALLOW_EXTERNAL_IPS = "AllowServiceExternalIPs"
"""Off: Services' externalIPs are not served."""
KUBE_PROXY_IPVS = "KubeProxyIPVS"
"""Off: ipvs mode is refused. kube-proxy turns it off by default in 1.40; kproxy does not."""
LOCALHOST_NODE_PORTS = "KubeProxyNFTablesLocalhostNodePorts"
"""On: TCP node ports in nftables mode answer on loopback, where nodePortAddresses names it."""
WATCH_LIST_CLIENT = "WatchListClient"
"""client-go's gate. Off: lists of the API server are read in pages, not streamed."""
ALL_ALPHA, ALL_BETA = "AllAlpha", "AllBeta"


class Stage(NamedTuple):
    """One stage of a gate. since: the minor that it begins with. group: the gate that switches all gates of this stage,
    "" for none."""

    since: KubernetesMinor
    default: bool
    group: str = ""


EFFECTIVE: Mapping[str, tuple[Stage, ...]] = {
    ALLOW_EXTERNAL_IPS: (Stage(KubernetesMinor(0), True),),
    KUBE_PROXY_IPVS: (Stage(KubernetesMinor(0), True),),
    WATCH_LIST_CLIENT: (Stage(KubernetesMinor(0), True),),
    LOCALHOST_NODE_PORTS: (
        Stage(KubernetesMinor(0), False),
        Stage(KubernetesMinor(37), False, ALL_ALPHA),
        Stage(KubernetesMinor(38), True, ALL_BETA),
    ),
}
"""The gates with an effect here, with their stages in order."""

# What these gates switch on is always on here.
_ALWAYS_ON = (
    *("ComponentFlagz", "ComponentSLIs", "ComponentStatusz", "ContextualLogging", "MultiCIDRServiceAllocator"),
    *("NFTablesNetlink", "NFTablesProxyMode", "PreferSameTrafficDistribution", "ServiceTrafficDistribution"),
    "TopologyAwareHints",
)

# The minors of Kubernetes 1 from and to which gates are known (30: or before). A gate followed by +34 is locked to true
# since 1.34, by -32 to false since 1.32.
_TABLE = """
30-38 AllAlpha AllBeta AnyVolumeDataSource+33 APIResponseCompression APIServerIdentity APIServerTracing+34
  APIServingWithRoutine CloudControllerManagerWebhook ClusterTrustBundle ClusterTrustBundleProjection ComponentSLIs+32
  ConsistentListFromCache+34 ContainerCheckpoint ContextualLogging CPUManagerPolicyAlphaOptions
  CPUManagerPolicyBetaOptions CPUManagerPolicyOptions+33 CRDValidationRatcheting+33 CronJobsScheduledAnnotation+32
  CrossNamespaceVolumeDataSource CSIVolumeHealth CustomCPUCFSQuotaPeriod CustomResourceFieldSelectors+32
  DisableNodeKubeProxyVersion DynamicResourceAllocation+35 ElasticIndexedJob+31 EventedPLEG ExecProbeTimeout+35
  GracefulNodeShutdown GracefulNodeShutdownBasedOnPodPriority HonorPVReclaimPolicy+33 HPAScaleToZero
  ImageMaximumGCAge+35 InformerResourceVersion InPlacePodVerticalScaling+35 JobBackoffLimitPerIndex+33 JobManagedBy+35
  JobPodReplacementPolicy+34 JobSuccessPolicy+33 KMSv1 KubeletCgroupDriverFromCRI+34 KubeletInUserNamespace
  KubeletPodResourcesDynamicResources KubeletPodResourcesGet KubeletSeparateDiskGC KubeletTracing+34
  LocalStorageCapacityIsolationFSQuotaMonitoring LogarithmicScaleDown+31 LoggingAlphaOptions LoggingBetaOptions
  MatchLabelKeysInPodAffinity+33 MatchLabelKeysInPodTopologySpread MaxUnavailableStatefulSet MemoryManager+32 MemoryQoS
  MultiCIDRServiceAllocator+34 MutatingAdmissionPolicy NFTablesProxyMode+33 NodeInclusionPolicyInPodTopologySpread+33
  NodeLogQuery NodeSwap+34 OpenAPIEnums OrderedNamespaceDeletion+34 PodAndContainerStatsFromCRI PodDeletionCost
  PodLifecycleSleepAction+34 PodReadyToStartContainersCondition PodSchedulingReadiness+30 PortForwardWebsockets
  ProcMountType QOSReserved RecoverVolumeExpansionFailure+34 RecursiveReadOnlyMounts+33
  RelaxedEnvironmentVariableValidation+34 RetryGenerateName+32 RotateKubeletServerCertificate RuntimeClassInImageCriApi
  SchedulerQueueingHints+34 SELinuxMount SELinuxMountReadWriteOncePod SeparateCacheWatchRPC
  SeparateTaintEvictionController+34 ServiceAccountTokenJTI+32 ServiceAccountTokenNodeBinding+33
  ServiceAccountTokenNodeBindingValidation+32 ServiceAccountTokenPodNodeInfo+32 ServiceTrafficDistribution+33
  SidecarContainers+33 StorageNamespaceIndex StorageVersionAPI StorageVersionHash StorageVersionMigrator
  StructuredAuthenticationConfiguration+34 StructuredAuthorizationConfiguration+32 TopologyAwareHints+33
  TopologyManagerPolicyAlphaOptions TopologyManagerPolicyBetaOptions TopologyManagerPolicyOptions
  TranslateStreamCloseWebsocketRequests UnauthenticatedHTTP2DOSMitigation UnknownVersionInteroperabilityProxy
  UserNamespacesSupport VolumeAttributesClass+36 WatchFromStorageWithoutResourceVersion-33 WatchList WatchListClient
  WindowsHostNetwork WinDSR+34 WinOverlay+34
31-38 AllowDNSOnlyNodeCSR AllowInsecureKubeletCertificateSigningRequests AnonymousAuthConfigurableEndpoints+34
  AuthorizeNodeWithSelectors+34 AuthorizeWithSelectors+34 ConcurrentWatchObjectDecode CoordinatedLeaderElection
  DisableAllocatorDualWrite+35 ImageVolume ReloadKubeletServerCertificateFile ResilientWatchCacheInitialization+34
  ResourceHealthStatus SupplementalGroupsPolicy+35 WatchCacheInitializationPostStartHook
32-38 AllowOverwriteTerminationGracePeriodSeconds-35 AllowUnsafeMalformedObjectDeletion BtreeWatchCache+33
  CBORServingAndStorage ClientsAllowCBOR ClientsPreferCBOR ComponentFlagz ComponentStatusz DRAAdminAccess+36
  DRAResourceClaimDeviceStatus ExternalServiceAccountTokenSigner InPlacePodVerticalScalingAllocatedStatus
  InPlacePodVerticalScalingExclusiveCPUs KubeletCrashLoopBackOffMax KubeletFineGrainedAuthz PodLevelResources
  PodLifecycleSleepActionAllowZero+34 PodLogsQuerySplitStreams RelaxedDNSSearchValidation+34 RemoteRequestHeaderUID
  SchedulerAsyncPreemption SELinuxChangePolicy ServiceAccountNodeAudienceRestriction SystemdWatchdog+35
  WindowsCPUAndMemoryAffinity WindowsGracefulNodeShutdown
33-38 AggregatedDiscoveryRemoveBetaType+35 AllowParsingUserUIDFromCertAuth ContainerStopSignals DeclarativeValidation
  DeclarativeValidationTakeover-37 DeploymentReplicaSetTerminatingReplicas DisableCPUQuotaWithExclusiveCPUs
  DRADeviceTaints DRAPartitionableDevices DRAPrioritizedList GitRepoVolumeDriver HPAConfigurableTolerance+37
  InOrderInformers KubeletEnsureSecretPulledImages KubeletPSI KubeletServiceAccountTokenForCredentialProviders
  ListFromCacheSnapshot MutableCSINodeAllocatableCount PodObservedGenerationTracking+35 PodTopologyLabelsAdmission
  PreferSameTrafficDistribution+35 ReduceDefaultCrashLoopBackOffDecay SchedulerPopFromBackoffQ StorageCapacityScoring
  StreamingCollectionEncodingToJSON+34 StreamingCollectionEncodingToProtobuf+34 StrictIPCIDRValidation
34-38 ClearingNominatedNodeNameAfterBinding ContainerRestartRules DetectCacheInconsistency DRAConsumableCapacity
  DRADeviceBindingConditions DRAExtendedResource DRASchedulerFilterTimeout EnvFiles HostnameOverride
  InPlacePodVerticalScalingExclusiveMemory KubeletPodResourcesListUseActivePods
  MatchLabelKeysInPodTopologySpreadSelectorMerge NominatedNodeNameForExpectation PodCertificateRequest
  PreventStaticPodAPIReferences RelaxedServiceNameValidation+37 SchedulerAsyncAPICalls SizeBasedListCostEstimate
  StructuredAuthenticationConfigurationEgressSelector TokenRequestServiceAccountUIDValidation
35-38 AuthorizePodWebsocketUpgradeCreatePermission ChangeContainerStatusOnKubeletRestart
  CloudControllerManagerWatchBasedRoutesReconciliation ConstrainedImpersonation CRDObservedGenerationTracking
  CSIServiceAccountTokenSecrets+36 DRADeviceTaintRules GenericWorkload ImageVolumeWithDigest
  InOrderInformersBatchProcess InPlacePodLevelResourcesVerticalScaling MutablePodResourcesForSuspendedJobs
  MutablePVNodeAffinity MutableSchedulingDirectivesForSuspendedJobs NodeDeclaredFeatures OpportunisticBatching
  RestartAllContainersOnContainerExits StatefulSetSemanticRevisionComparison
  StructuredAuthenticationConfigurationJWKSMetrics TaintTolerationComparisonOperators UserNamespacesHostNetworkSupport
  VolumeLimitScaling
36-38 AllowServiceExternalIPs AtomicFIFO ControllerManagerReleaseLeaderElectionLockOnExit CRIListStreaming
  DeclarativeValidationBeta DRAListTypeAttributes DRANodeAllocatableResources
  DRAResourceClaimGranularStatusAuthorization DRAResourcePoolStatus DRAWorkloadResourceClaims ExtendWebSocketsToKubelet
  HPAExternalMetricFallback ManifestBasedAdmissionControlConfig NativeHistograms PersistentVolumeClaimUnusedSinceTime
  PodLevelResourceManagers PodsAPI ShardedListAndWatch StaleControllerConsistencyDaemonSet
  StaleControllerConsistencyJob StaleControllerConsistencyReplicaSet StaleControllerConsistencyStatefulSet
  TopologyAwareWorkloadScheduling UnlockWhileProcessingFIFO WorkloadWithJob
37-38 APIServerWebhookAuthenticationToken AtomicWriteVolumeUserFields CompositePodGroup DefaultPodSysctls
  DRADerivedAttributes DRADeviceCompatibilityGroups DRAOptionalNodeOperations DRAPartitionableDevicesType
  EmptyDirVolumeMode EtcdRangeStream ExcludeAdmissionWebhookVirtualResources GRPCContainerProbeTLS H2CContainerProbe
  HugepageAwareEviction InPlacePodVerticalScalingMemoryBackedVolumes InPlacePodVerticalScalingSchedulerPreemption
  KubeProxyIPVS KubeProxyNFTablesLocalhostNodePorts NFTablesNetlink NodeLifecycleConditions PodGroupPreemptionPolicy
  StatefulSetRecreateStrategy VolumeBindMountOptions
38-38 CgroupNamespacesSupport CgroupOptions CloudNodeAdditionalLabelsReconciliation ConditionalAuthorization
  ContainerUlimits CSIControllerGetNodeInfo CSIGlobalMountReconstruction ExternalNodeLivenessDetection
  LeaderElectionRecovery MemoryManagerDriftTolerance MutableContainerProbes PodDefaultNetwork PodImplicitRootWarnings
  SecurityProfileOCI WorkloadControlledSwap
32-36 KubeletRegistrationGetOnExistsOnly
33-36 LegacySidecarContainers
35-36 GangScheduling
36-36 WorkloadAwarePreemption
30-35 CSIMigrationPortworx+33 InTreePluginPortworxUnregister
30-34 AllowServiceLBStatusOnNonLB-32 LoadBalancerIPMode+32 PodIndexLabel+32 SizeMemoryBackedVolumes+32
  StatefulSetAutoDeletePVC+32 StatefulSetStartOrdinal+31 StrictCostEnforcementForVAP+32
  UserNamespacesPodSecurityStandards
31-34 StrictCostEnforcementForWebhooks+32
30-33 DevicePluginCDIDevices+31 VolumeCapacityPriority
30-32 AdmissionWebhookMatchConditions+30 AggregatedDiscoveryEndpoint+30 APIListChunking+30 AppArmor+31
  AppArmorFields+31 CPUManager+30 DisableCloudProviders+31 DisableKubeletCloudCredentialProviders+31
  JobPodFailurePolicy+31 KubeProxyDrainingTerminatingNodes+31 PDBUnhealthyPodEvictionPolicy+31
  PersistentVolumeLastPhaseTransitionTime+31 PodDisruptionConditions+31 WatchBookmark+30
30-31 CloudDualStackNodeIPs+30 EfficientWatchResumption+30 HPAContainerMetrics+30 LegacyServiceAccountTokenCleanUp+30
  MinDomainsInPodTopologySpread+30 NewVolumeManagerReconstruction+30 NodeOutOfServiceVolumeDetach+30 PodHostIPs+30
  RemainingItemCount+30 ServerSideApply+30 ServerSideFieldValidation+30 StableLoadBalancerNodeSet+30
  ValidatingAdmissionPolicy+30 ZeroLimitedNominalConcurrencyShares+30
31-31 DRAControlPlaneController
30-30 APIPriorityAndFairness+30 ConsistentHTTPGetHandlers CSIMigrationRBD CSINodeExpandSecret+30
  CustomResourceValidationExpressions+30 DefaultHostNetworkHostPortsInPodTemplates InTreePluginAWSUnregister
  InTreePluginAzureDiskUnregister InTreePluginAzureFileUnregister InTreePluginGCEUnregister
  InTreePluginOpenStackUnregister InTreePluginRBDUnregister InTreePluginvSphereUnregister JobReadyPods+30 KMSv2+30
  KMSv2KDF+30 ReadWriteOncePod+30 ServiceNodePortStaticSubrange+30 SkipReadOnlyValidationGCE
"""


class Gate(NamedTuple):
    """One gate. first, last: the minors that know it, of those in the table. locked: the only value that it may have
    since the minor `locked_since`; None when it is free."""

    first: KubernetesMinor
    last: KubernetesMinor
    locked: bool | None = None
    locked_since: KubernetesMinor = KubernetesMinor(0)

    def lock(self, minor: KubernetesMinor) -> bool | None:
        """The only value of the gate in MINOR, or in the nearest minor that knows it; None when both are allowed."""
        return self.locked if min(minor, self.last) >= self.locked_since else None


def _parse_table() -> Iterator[tuple[str, Gate]]:
    for word in _TABLE.split():
        if span := re.fullmatch("([0-9]{2})-([0-9]{2})", word):
            first, last = KubernetesMinor(span[1]), KubernetesMinor(span[2])
        else:
            name, sign, since = re.split("([+-]|$)", word, maxsplit=1)
            yield name, Gate(first, last, sign == "+", KubernetesMinor(since)) if sign else Gate(first, last)


GATES: Mapping[str, Gate] = dict(_parse_table())
"""Every known gate."""


def enabled(name: str, given: Mapping[str, bool], minor: KubernetesMinor) -> bool:
    """Whether the gate NAME of EFFECTIVE is on in MINOR, when the configuration sets the gates GIVEN."""
    stage = next(stage for stage in reversed(EFFECTIVE[name]) if stage.since <= minor)
    return given.get(name, given.get(stage.group, stage.default))


def problems(given: Mapping[str, bool], minor: KubernetesMinor) -> Iterator[tuple[str, str]]:
    """The problems of the gates GIVEN in MINOR, as (name, reason). Unknown gates are none in a minor newer than this
    table; see `unknown`."""
    if minor <= minors.NEWEST:
        yield from unknown(given)
    for name, value in given.items():
        lock = GATES[name].lock(minor) if name in GATES else None
        if lock is not None and lock is not value:
            yield name, f"cannot be set to {_word(value)}, the feature is locked to {_word(lock)}"


def unknown(given: Mapping[str, bool]) -> Iterator[tuple[str, str]]:
    """The gates among GIVEN that no minor in the table knows, as (name, reason with the nearest known name)."""
    for name in given:
        if name not in GATES:
            near = _nearest(name)
            yield name, f"unrecognized feature gate{f' (is {near} meant?)' if near else ''}"


def idle(given: Mapping[str, bool], minor: KubernetesMinor) -> list[str]:
    """The gates among GIVEN that have no effect here, although they ask for a change."""

    def is_idle(name: str, value: bool) -> bool:
        if name in (ALL_ALPHA, ALL_BETA):
            others = {other: on for other, on in given.items() if other != name}
            return all(enabled(gate, given, minor) == enabled(gate, others, minor) for gate in EFFECTIVE)
        as_it_is = value if name not in GATES else GATES[name].lock(minor)
        return name not in EFFECTIVE and as_it_is is not value and not (value and name in _ALWAYS_ON)

    return [name for name, value in given.items() if is_idle(name, value)]


def _nearest(name: str) -> str:
    by_lower = {known.lower(): known for known in GATES}
    return "".join(by_lower[near] for near in get_close_matches(name.lower(), by_lower, n=1))


def _word(value: bool) -> str:
    return "true" if value else "false"
