/**
 * Brings this device to the release that its spec asks for. The release is fetched, verified against the key that was pinned on
 * this device, unpacked into the slot that does not run, and left to the launcher, which puts it on trial after this agent has
 * ended. A trial that failed is not tried again under the same generation of the spec.
 *
 * Nothing that is fetched may be older than the newest release that has stood a trial here, unless the spec allows it: a
 * signature says who made a release, not that it is still fit to run. Going back to a release that is still unpacked here is
 * what a rollback does, and always possible.
 */
import { existsSync } from 'node:fs';
import { readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { compareVersions, type Logger, parseVersion, unpackBundle, VERSION, verifyBundle } from '@moefleet/runtime';
import type { ArtifactSource } from './artifact-source';
import type { BundleKey } from './bundle-key';
import { firstTokens } from './first-tokens';
import type { Expectation } from './judge';
import type { SlotName, Slots } from './slots';

export interface WantedRelease { readonly version: string; readonly allowDowngrade: boolean; }

/** What the applier does with a spec that asks for a release. */
export type ReleaseState = { t: 'right' } | { t: 'on the way' } | { t: 'failed'; reason: string };

export interface AgentUpgradeOptions {
  /** null: nobody looks after this agent, so it cannot be replaced */
  slots: Slots | null;
  /** null: it runs without a coordinator */
  source: ArtifactSource | null;
  /** what releases are signed with */
  key: BundleKey;
  arch: string;
  trialMs: number;
  httpUrl: () => string;
  apiKey: string | null;
  connected: () => boolean;
  /** whether a model is loaded */
  serving: () => boolean;
  log: Logger;
}

const RIGHT: ReleaseState = { t: 'right' };
const BUNDLE = 'bundle';
const TRIAL_LOOK_MS = 250;

export class AgentUpgrade {
  private work: { version: string; generation: bigint; state: ReleaseState } | null = null;
  private trialTimer: NodeJS.Timeout | null = null;
  private readonly listeners = new Set<() => void>();
  private end: () => void = () => {};
  /** Resolves when this agent shall end, for another to start. */
  readonly leaving = new Promise<void>((resolve) => { this.end = resolve; });

  constructor(private readonly options: AgentUpgradeOptions) {}

  /** Told when the state may be another. */
  onChange(listener: () => void): void {
    this.listeners.add(listener);
  }

  /** Level-based: asked at each pass; begins what has to be done. `wanted` undefined: the release that was installed. */
  look(wanted: WantedRelease | undefined, generation: bigint): ReleaseState {
    const { slots } = this.options;
    const version = wanted?.version ?? this.versionWithoutSpec();
    if (version === VERSION) return this.trialOver() ? RIGHT : { t: 'on the way' };
    if (!slots) return { t: 'failed', reason: `agent release ${version} cannot replace ${VERSION}: this agent was not started by a bundle's launcher; deploy it with: moefleet deploy ssh` };
    if (this.work?.version === version && (this.work.generation === generation || this.work.state.t === 'on the way')) return this.work.state;
    const { attempt, outcome } = slots;
    if (attempt?.version === version && attempt.generation === String(generation) && outcome?.version === version && !outcome.ok) {
      return { t: 'failed', reason: `agent release ${version}: ${outcome.reason}; ${VERSION} is back` };
    }
    this.work = { version, generation, state: { t: 'on the way' } };
    this.bring({ version, allowDowngrade: wanted?.allowDowngrade ?? true }, generation).catch((error: Error) => {
      this.options.log.error({ version, reason: error.message }, 'the agent stays at its release');
      this.work = { version, generation, state: { t: 'failed', reason: `agent release ${version}: ${error.message}` } };
      for (const listener of this.listeners) listener();
    });
    return this.work.state;
  }

  /** While it is on trial it may yet have to go, so nothing it runs is applied. */
  private trialOver(): boolean {
    if (!this.options.slots?.onTrial) return true;
    this.trialTimer ??= setInterval(() => {
      if (this.options.slots?.onTrial) return;
      clearInterval(this.trialTimer!);
      this.trialTimer = null;
      for (const listener of this.listeners) listener();
    }, TRIAL_LOOK_MS).unref();
    return false;
  }

  /** Where a spec says nothing of it, what runs stays, unless a spec had brought it here. */
  private versionWithoutSpec(): string {
    const { slots } = this.options;
    if (!slots || slots.running === 'installed' || slots.attempt === null) return VERSION;
    return slots.versionIn('installed') ?? VERSION;
  }

  /** Ends with this agent about to end. */
  private async bring(wanted: WantedRelease, generation: bigint): Promise<void> {
    const slots = this.options.slots!;
    parseVersion(wanted.version);
    const slot = slots.holding(wanted.version) ?? await this.fetch(wanted, slots);
    const expected: Expectation = { connected: this.options.connected(), answers: await this.answers(), deadlineMs: this.options.trialMs };
    slots.write('expected.json', JSON.stringify(expected));
    slots.startNext(slot, { version: wanted.version, generation: String(generation) });
    this.options.log.info({ version: wanted.version, slot }, 'another release is unpacked; ending for its trial');
    this.end();
  }

  private async fetch(wanted: WantedRelease, slots: Slots): Promise<SlotName> {
    const { source, arch, log } = this.options;
    if (!wanted.allowDowngrade) refuseOlder(wanted.version, slots.floor);
    const key = this.options.key.read();
    if (!source) throw new Error('there is no coordinator to fetch it from');
    const artifact = await source.find(`moefleet-agent-${wanted.version}-linux-${arch}.tar.zst`);
    if (artifact.signature === '') throw new Error(`${artifact.name} is not signed; build it with --key and push it again`);
    const file = join(slots.folder, `${BUNDLE}-${artifact.sha256.slice(0, 16)}`);
    await dropOthers(file);
    log.info({ version: wanted.version, bytes: artifact.bytes }, 'fetching another release of the agent');
    try {
      if (!existsSync(file)) await source.fetch(artifact, file);
      await verifyBundle(file, artifact.signature, key);
      return await unpackInto(slots, file, wanted.version, arch);
    } finally {
      await rm(file, { force: true });
    }
  }

  /** null: it serves nothing now, so the next need not either. */
  private async answers(): Promise<string[] | null> {
    const { httpUrl, apiKey, serving } = this.options;
    return serving() ? firstTokens(httpUrl(), apiKey, AbortSignal.timeout(this.options.trialMs)) : null;
  }
}

function refuseOlder(version: string, floor: string | null): void {
  const least = [VERSION, ...(floor === null ? [] : [floor])].map(parseVersion).sort(compareVersions).at(-1)!;
  if (compareVersions(parseVersion(version), least) < 0) throw new Error(`it is older than ${least.text}, which has run here; to go back nevertheless: moefleet agent upgrade ${version} --allow-downgrade`);
}

/** What has arrived of other bundles, whose fetching nobody goes on with. */
async function dropOthers(file: string): Promise<void> {
  const folder = dirname(file);
  const others = (await readdir(folder)).filter((name) => name.startsWith(`${BUNDLE}-`) && !name.startsWith(basename(file)));
  for (const name of others) await rm(join(folder, name), { force: true });
}

async function unpackInto(slots: Slots, file: string, version: string, arch: string): Promise<SlotName> {
  const slot = slots.free;
  const part = `${slots.path(slot)}.new`;
  await rm(part, { recursive: true, force: true });
  const manifest = await unpackBundle(file, part);
  if (manifest.version !== version || manifest.arch !== arch) {
    await rm(part, { recursive: true, force: true });
    throw new Error(`the bundle holds ${manifest.version} for ${manifest.arch}, ${version} for ${arch} was asked for`);
  }
  slots.clear(slot);
  await rename(part, slots.path(slot));
  return slot;
}
