/** What the agent tells of itself, its model and its limits. */
import { hostname, release, totalmem, type as osType } from 'node:os';
import { DeviceInfo, type ModelFetch, ModelState, ModelState_Status } from '@moefleet/proto';
import { VERSION } from '@moefleet/runtime';
import type { HostState } from '../engine-host';
import { type Limits, maxCapacities } from './effective-spec';

export interface DeviceFacts {
  labels: Readonly<Record<string, string>>;
  limits: Limits;
  httpUrl: string;
  host: { state: HostState; crashes: number; lastTrouble: string };
  /** undefined while none is */
  modelFetch: ModelFetch | undefined;
  /** hex of the manifest whose model a file is, null for a file of the device's own */
  manifestOf: (modelPath: string) => string | null;
}

export function deviceInfo({ labels, limits, httpUrl, host, modelFetch, manifestOf }: DeviceFacts): DeviceInfo {
  return DeviceInfo.fromPartial({
    agentVersion: VERSION, arch: process.arch, os: `${osType()} ${release()}`, hostname: hostname(), labels: { ...labels },
    model: modelState(host, manifestOf), modelFetch,
    limits: { maxCacheBytes: BigInt(limits.maxCacheBytes), maxLambda: limits.maxLambda, maxCapacities: capacitiesOf(limits, host.state) },
    httpUrl,
    memoryBytes: BigInt(totalmem()),
  });
}

function modelState({ state, crashes, lastTrouble }: DeviceFacts['host'], manifestOf: DeviceFacts['manifestOf']): ModelState {
  const common = { hostCrashes: crashes, message: state.t === 'failed' ? state.reason : lastTrouble };
  if (state.t !== 'ready') return ModelState.fromPartial({ ...common, status: STATUS[state.t] });
  const { hash, info } = state.model;
  return ModelState.fromPartial({
    ...common, status: STATUS.ready, hash, name: info.name, architecture: info.architecture, experts: info.experts, topK: info.topK,
    moeLayers: info.moeLayers, expertBytes: info.expertBytes.map((bytes) => BigInt(bytes)), denseBytes: BigInt(info.denseBytes),
    tokenCycleBytes: BigInt(info.tokenCycleBytes), manifestSha256: manifestOf(info.path) ?? '',
  });
}

const STATUS = {
  stopped: ModelState_Status.STATUS_UNSPECIFIED,
  loading: ModelState_Status.STATUS_LOADING,
  ready: ModelState_Status.STATUS_READY,
  failed: ModelState_Status.STATUS_FAILED,
} as const;

function capacitiesOf(limits: Limits, state: HostState): number[] {
  if (state.t !== 'ready' || limits.maxCacheBytes < state.model.info.tokenCycleBytes) return [];
  return maxCapacities(limits, state.model);
}
