/** What is to be done on one device, from what is there and what shall be. Nothing to do is an empty list. */
import { createHash } from 'node:crypto';
import { formatSize } from '@moefleet/runtime';
import type { DeviceFacts } from './device-facts';
import { modelPath, renderKey, renderLauncher, renderSettings, renderUnit, type RenderedFile, serviceUser, type Wanted } from './wanted';

export type Step =
  | { t: 'user'; name: string }
  | { t: 'bundle' }
  | { t: 'model'; name: string }
  | { t: 'file'; file: RenderedFile }
  | { t: 'enrol' }
  | { t: 'start'; by: 'systemd' | 'launcher' };

/** What is brought along, by content. */
export interface Cargo {
  bundle: { sha256: string; bytes: number; version: string };
  /** null: the model lies on the device already */
  model: { sha256: string; bytes: number } | null;
  /** whether the coordinator has a certificate authority to enrol with */
  enrols: boolean;
}

export function planDeploy(facts: DeviceFacts, wanted: Wanted, cargo: Cargo): Step[] {
  const { installed } = facts;
  const steps: Step[] = [];
  const user = serviceUser(wanted, facts);
  if (facts.scope === 'system' && user !== 'root' && !installed.user) steps.push({ t: 'user', name: user });
  if (installed.bundleSha256 !== cargo.bundle.sha256) steps.push({ t: 'bundle' });
  if (cargo.model && 'name' in wanted.model && installed.modelSha256 !== cargo.model.sha256) steps.push({ t: 'model', name: wanted.model.name });
  const settings = renderSettings(wanted, facts);
  if (installed.settingsSha256 !== sha256(settings.content)) steps.push({ t: 'file', file: settings });
  const key = renderKey(wanted, facts);
  if (key && installed.keySha256 !== sha256(key.content)) steps.push({ t: 'file', file: key });
  const by = facts.systemd === null ? 'launcher' : 'systemd';
  const service = by === 'systemd' ? renderUnit(wanted, facts) : renderLauncher(wanted, facts);
  if ((by === 'systemd' ? installed.unitSha256 : installed.launcherSha256) !== sha256(service.content)) steps.push({ t: 'file', file: service });
  if (cargo.enrols && !installed.enrolled) steps.push({ t: 'enrol' });
  if (steps.length > 0 || !installed.running) steps.push({ t: 'start', by });
  return steps;
}

/** Bytes that the steps put on the device's disks; a bundle lies there packed and unpacked, a model once. */
export function bytesNeeded(steps: readonly Step[], cargo: Cargo, unpackedBytes: number): { prefixBytes: number; stateBytes: number } {
  return {
    prefixBytes: steps.some(({ t }) => t === 'bundle') ? cargo.bundle.bytes + unpackedBytes : 0,
    stateBytes: steps.some(({ t }) => t === 'model') ? cargo.model?.bytes ?? 0 : 0,
  };
}

export function stepText(step: Step, facts: DeviceFacts, wanted: Wanted, cargo: Cargo): string {
  switch (step.t) {
    case 'user': return `make the service user ${step.name}`;
    case 'bundle': return `${facts.installed.bundleSha256 ? 'replace the bundle by' : 'copy the bundle'} ${cargo.bundle.version} (${formatSize(cargo.bundle.bytes)}) to ${facts.prefix}`;
    case 'model': return `copy the model ${step.name} (${formatSize(cargo.model?.bytes ?? 0)}) to ${modelPath(wanted, facts)}`;
    case 'file': return `write ${step.file.path}`;
    case 'enrol': return 'enrol it with a token of one use';
    case 'start': return `${facts.installed.running ? 'start anew' : 'start'} the agent (${step.by})`;
  }
}

export function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
