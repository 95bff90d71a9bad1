/**
 * Who may call what: every method that the operator server serves, and the role it needs. A method that is missing here
 * needs `admin`, and a test names it.
 */
import type { OperatorRole } from '../registry/operator-store';

/** `public`: whoever reaches the port, as health checks must. */
export type Need = OperatorRole | 'public';

const RANK: Readonly<Record<string, number>> = { viewer: 1, operator: 2, admin: 3 };

const NEEDS: Readonly<Record<string, Need>> = {
  '/moefleet.v1.OperatorService/ListDevices': 'viewer',
  '/moefleet.v1.OperatorService/GetDevice': 'viewer',
  '/moefleet.v1.OperatorService/ChangeConfig': 'operator',
  '/moefleet.v1.OperatorService/GetRollout': 'viewer',
  '/moefleet.v1.OperatorService/MeasureDevice': 'operator',
  '/moefleet.v1.OperatorService/RunLearner': 'operator',
  '/moefleet.v1.OperatorService/GetLearner': 'viewer',
  '/moefleet.v1.InventoryService/ChangeLabels': 'operator',
  '/moefleet.v1.InventoryService/ExplainConfig': 'viewer',
  '/moefleet.v1.InventoryService/WatchDevices': 'viewer',
  '/moefleet.v1.IdentityService/CreateEnrolmentToken': 'admin',
  '/moefleet.v1.IdentityService/ListEnrolmentTokens': 'viewer',
  '/moefleet.v1.IdentityService/RevokeEnrolmentToken': 'operator',
  '/moefleet.v1.IdentityService/RevokeDevice': 'operator',
  '/moefleet.v1.IdentityService/UnrevokeDevice': 'admin',
  '/moefleet.v1.IdentityService/ReleaseDevice': 'admin',
  '/moefleet.v1.IdentityService/RemoveDevice': 'admin',
  '/moefleet.v1.IdentityService/ClearClone': 'operator',
  '/moefleet.v1.IdentityService/ListDeviceIdentities': 'viewer',
  '/moefleet.v1.RolloutService/GetKillSwitch': 'viewer',
  '/moefleet.v1.RolloutService/KillLambda': 'operator',
  '/moefleet.v1.RolloutService/ReleaseLambda': 'operator',
  '/moefleet.v1.RolloutService/PlanRollout': 'viewer',
  '/moefleet.v1.RolloutService/StartRollout': 'operator',
  '/moefleet.v1.RolloutService/ListRollouts': 'viewer',
  '/moefleet.v1.RolloutService/GetStagedRollout': 'viewer',
  '/moefleet.v1.RolloutService/WatchRollout': 'viewer',
  '/moefleet.v1.RolloutService/PauseRollout': 'operator',
  '/moefleet.v1.RolloutService/ResumeRollout': 'operator',
  '/moefleet.v1.RolloutService/RollbackRollout': 'operator',
  '/moefleet.v1.FleetService/GetFleetStatus': 'viewer',
  '/moefleet.v1.FleetService/GetDeviceHistory': 'viewer',
  '/moefleet.v1.FleetService/ListCoordinators': 'viewer',
  '/moefleet.v1.FleetService/AcceptRestore': 'operator',
  '/moefleet.v1.WindowService/ListWindows': 'viewer',
  '/moefleet.v1.WindowService/ReadWindows': 'viewer',
  '/moefleet.v1.WindowService/DeleteWindows': 'operator',
  '/moefleet.v1.LearnerService/ListLearnable': 'learner',
  '/moefleet.v1.LearnerService/StreamLearnable': 'learner',
  '/moefleet.v1.LearnerService/GetSurface': 'learner',
  '/moefleet.v1.LearnerService/PutSurface': 'learner',
  '/moefleet.v1.LearnerService/Propose': 'learner',
  '/moefleet.v1.LearnerService/ReportActivity': 'learner',
  '/moefleet.v1.KnowledgeService/ListKnowledge': 'learner',
  '/moefleet.v1.KnowledgeService/StreamKnowledge': 'learner',
  '/moefleet.v1.KnowledgeService/StreamUse': 'learner',
  '/moefleet.v1.KnowledgeService/PutKnowledge': 'learner',
  '/moefleet.v1.KnowledgeService/ExplainLearner': 'viewer',
  '/moefleet.v1.AccessService/CreateOperator': 'admin',
  '/moefleet.v1.AccessService/ListOperators': 'admin',
  '/moefleet.v1.AccessService/RevokeOperator': 'admin',
  '/moefleet.v1.AccessService/ReadAudit': 'viewer',
  '/moefleet.v1.ArtifactStoreService/PutArtifact': 'operator',
  '/moefleet.v1.ArtifactStoreService/ListArtifacts': 'viewer',
  '/moefleet.v1.ModelStoreService/FindMissingBlobs': 'operator',
  '/moefleet.v1.ModelStoreService/PutBlobs': 'operator',
  '/moefleet.v1.ModelStoreService/PutModel': 'operator',
  '/moefleet.v1.ModelStoreService/ListModels': 'viewer',
  '/moefleet.v1.ModelStoreService/RemoveModel': 'operator',
  '/grpc.health.v1.Health/Check': 'public',
  '/grpc.health.v1.Health/Watch': 'public',
};

export function roleNeeded(path: string): Need {
  return Object.hasOwn(NEEDS, path) ? NEEDS[path]! : 'admin';
}

export function isListed(path: string): boolean {
  return Object.hasOwn(NEEDS, path);
}

/** A higher role may what a lower one may; an admin also what a learner may. */
export function mayCall(role: OperatorRole, need: Need): boolean {
  if (need === 'public' || role === need) return true;
  if (need === 'learner') return role === 'admin';
  return role !== 'learner' && RANK[role]! >= RANK[need]!;
}
