/**
 * One host from its first answer to its first token: look, decide, copy, install, enrol, start, see it serve. Each step can
 * be done twice; a run that was cut off is gone on with by the next.
 */
import { fileSha256, formatSize } from '@moefleet/runtime';
import { bytesNeeded, type Cargo, planDeploy, type Step, stepText } from './deploy-plan';
import { DeployError } from './deploy-error';
import { deployFile } from './deploy-files';
import { type BundleCargo, type CargoFile, formatFor } from './cargo-file';
import { checkDevice, type Finding } from './device-check';
import { bundleArch, type DeviceFacts } from './device-facts';
import { installStep, probe } from './device-scripts';
import type { FleetView } from './fleet-view';
import type { SshLink } from './ssh-link';
import { serviceUser, type Wanted } from './wanted';

const ENROL_TTL_MS = 15 * 60_000;

export interface HostJob {
  wanted: Wanted;
  link: SshLink;
  /** for the architecture; null: there is none */
  bundleFor(arch: 'x64' | 'arm64'): Promise<BundleCargo | null>;
  /** null: the model lies on the device */
  model: CargoFile | null;
  fleet: FleetView;
  dryRun: boolean;
  /** how long a loaded model and the fleet's word are waited for */
  patienceMs: number;
  nowMs(): number;
  /** `fraction` in [0,1] of a copy, null where it cannot be told */
  onPhase(phase: string, fraction: number | null): void;
}

export interface HostOutcome {
  facts: DeviceFacts;
  findings: Finding[];
  steps: string[];
  changed: boolean;
  /** seconds by phase, and from the first to the last */
  seconds: Record<string, number>;
}

/** Throws DeployError; `partial` is filled as far as it came. */
export async function deployHost(job: HostJob, partial: Partial<HostOutcome>): Promise<HostOutcome> {
  const { wanted, link, fleet, onPhase } = job;
  const seconds: Record<string, number> = {};
  partial.seconds = seconds;
  const begun = job.nowMs();
  const phase = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    onPhase(name, null);
    const began = job.nowMs();
    try {
      return await work();
    } finally {
      seconds[name] = round((seconds[name] ?? 0) + (job.nowMs() - began) / 1000);
      seconds['total'] = round((job.nowMs() - begun) / 1000);
    }
  };
  await phase('connect', () => link.open());
  const modelName = 'name' in wanted.model ? wanted.model.name : '';
  const facts = await phase('check', () => probe(link, { user: wanted.user, model: modelName, flash: true }));
  partial.facts = facts;

  const arch = bundleArch(facts.arch);
  const bundle = arch === null ? null : await job.bundleFor(arch);
  const cargo: Cargo = { bundle: bundle ?? { sha256: '', bytes: 0, version: 'none' }, model: job.model, enrols: fleet.enrols };
  const steps = planDeploy(facts, wanted, cargo);
  const findings = checkDevice(facts, bytesNeeded(steps, cargo, bundle?.unpackedBytes ?? 0), job.nowMs(), bundle?.requires);
  partial.findings = findings;
  partial.steps = steps.map((step) => stepText(step, facts, wanted, cargo));
  const stops = findings.filter(({ severity }) => severity === 'stop');
  if (stops.length > 0) throw new DeployError(stops.map(({ check, found }) => `${check}: ${found}`).join('; '), stops.map(({ remedy }) => remedy).join('; '));
  if (bundle === null) throw new DeployError(`there is no bundle for linux-${arch}`, `make one: npm run bundle -- --arch ${arch}   (or name it with --bundle)`);
  if (job.model === null && modelName !== '' && facts.installed.modelSha256 === '') {
    throw new DeployError(`it has no model ${modelName} in ${facts.state}/models`, 'give the file: --model FILE copies it there; or name one that lies elsewhere on the device: --model device:/path');
  }
  const outcome: HostOutcome = { facts, findings, steps: partial.steps, changed: steps.length > 0, seconds };
  if (job.dryRun) return outcome;

  for (const step of steps) if (isPlaced(step)) await phase(PHASES[step.t], () => carryOut(step, job, facts, bundle));
  if (steps.some(({ t }) => t === 'file' || t === 'enrol')) await phase('install', () => writeFiles(steps, job, facts));
  for (const step of steps) if (step.t === 'start') await phase('start', () => install(job, facts, 'start', [step.by]));
  if (steps.length > 0 || fleet.asks) await phase('serve', () => seeItServe(job, facts));
  if (fleet.enrols) await install(job, facts, 'forget', [`${facts.config}/enrol.env`]);
  onPhase('done', null);
  return outcome;
}

type Placed = Extract<Step, { t: 'user' | 'bundle' | 'model' }>;

const PHASES: Record<Placed['t'], string> = { user: 'install', bundle: 'bundle', model: 'model' };

function isPlaced(step: Step): step is Placed {
  return step.t in PHASES;
}

async function carryOut(step: Placed, job: HostJob, facts: DeviceFacts, bundle: BundleCargo): Promise<void> {
  switch (step.t) {
    case 'user': return void await install(job, facts, 'user', []);
    case 'bundle': return copyBundle(job, facts, bundle);
    case 'model': return copyModel(job, facts, job.model!, step.name);
  }
}

/** All in one session: each costs a process at both ends and the way there and back. */
async function writeFiles(steps: readonly Step[], job: HostJob, facts: DeviceFacts): Promise<void> {
  const files = steps.flatMap((step) => (step.t === 'file' ? [step.file] : []));
  if (steps.some(({ t }) => t === 'enrol')) {
    const token = await job.fleet.createToken(job.wanted.id, ENROL_TTL_MS);
    files.push({ path: `${facts.config}/enrol.env`, mode: '0600', owner: 'service', content: `MOEFLEET_ENROL_TOKEN="${token}"\n` });
  }
  const base64 = (text: string) => Buffer.from(text).toString('base64');
  await install(job, facts, 'files', [], files.map(({ path, mode, owner, content }) => `${mode} ${owner} ${base64(path)} ${base64(content)}`).join('\n'));
}

async function copyBundle(job: HostJob, facts: DeviceFacts, bundle: BundleCargo): Promise<void> {
  const format = formatFor(facts.tools);
  const part = `${facts.prefix}/incoming/${bundle.sha256.slice(0, 12)}.tar.${format}`;
  const archive = await bundle.as(format);
  await copy(job, facts, archive, part, 'bundle');
  job.onPhase('bundle: verify, unpack', null);
  await install(job, facts, 'bundle', [part, format, bundle.sha256, archive.sha256]);
}

async function copyModel(job: HostJob, facts: DeviceFacts, model: CargoFile, name: string): Promise<void> {
  const part = `${facts.state}/models/${name}.${model.sha256.slice(0, 12)}.part`;
  await copy(job, facts, model, part, 'model');
  job.onPhase('model: verify', null);
  await install(job, facts, 'model', [part, name, model.sha256]);
}

/** Goes on after what has arrived, where that is the beginning of the same file. Whether it has arrived whole is for the step after it to see. */
async function copy(job: HostJob, facts: DeviceFacts, { path, bytes }: CargoFile, part: string, what: string): Promise<void> {
  const [arrived = '0', hash = '-'] = (await install(job, facts, 'part', [part])).trim().split(' ');
  let offset = Number(arrived);
  if (!(offset > 0 && offset <= bytes && await fileSha256(path, offset) === hash)) {
    if (offset > 0) await install(job, facts, 'forget', [part]);
    offset = 0;
  }
  if (offset > 0) job.onPhase(`${what}: goes on at ${formatSize(offset)}`, null);
  if (offset < bytes) await job.link.append(path, part, offset, (sent) => job.onPhase(what, sent / bytes));
}

function install(job: HostJob, facts: DeviceFacts, step: string, args: readonly string[], content = ''): Promise<string> {
  return installStep(job.link, facts, serviceUser(job.wanted, facts), step, args, content);
}

/** The device by its own HTTP API, the coordinator by its registry: both have to say so. */
async function seeItServe(job: HostJob, facts: DeviceFacts): Promise<void> {
  const { wanted, link, fleet } = job;
  const base = `http://${wanted.http.replace(/^(0\.0\.0\.0|\[::\]):/, '127.0.0.1:')}`;
  const node = ['sh', '-c', 'n="$1/current/bin/node"; shift; exec "$n" - "$@"', 'sh', facts.prefix, base, String(job.patienceMs)];
  const program = `globalThis.apiKey = ${JSON.stringify(wanted.settings['MOEFLEET_API_KEY'] ?? '')};\n${deployFile('device/serves.js')}`;
  const [{ stdout }, seen] = await Promise.all([link.run('serve', node, program), fleet.waitApplied(wanted.id, job.patienceMs).catch((error: Error) => error)]);
  const answer = readAnswer(stdout);
  if (!answer.served || seen instanceof Error) {
    const said = lastTrouble(await install(job, facts, 'log', [facts.systemd === null ? 'launcher' : 'systemd', '40']));
    const what = answer.served ? (seen as Error).message : `it serves no token: ${answer.reason}`;
    throw new DeployError(`${what}${said && `; the agent says: ${said}`}`, remedyFor(said, wanted.id));
  }
}

function readAnswer(stdout: string): { served: boolean; reason: string } {
  try {
    const { served, reason } = JSON.parse(stdout) as { served: unknown; reason: unknown };
    return { served: served === true, reason: String(reason).slice(0, 500) };
  } catch {
    return { served: false, reason: 'the device gave no answer' };
  }
}

/** The last warning or error of a log of JSON lines; else its last line. */
export function lastTrouble(log: string): string {
  const lines = log.trim().split('\n').filter(Boolean);
  for (const line of [...lines].reverse()) {
    try {
      const { level, msg, reason, name } = JSON.parse(line) as { level?: number; msg?: string; reason?: string; name?: string };
      if ((level ?? 0) >= 40 && name !== 'launcher') return [msg, reason].filter(Boolean).join(': ').slice(0, 500);
    } catch {
      // No line of the agent's: what the shell or systemd said.
    }
  }
  return (lines.at(-1) ?? '').slice(0, 300);
}

function remedyFor(said: string, id: string): string {
  if (/another installation|ALREADY_EXISTS/i.test(said)) return `if this is the same device set up anew: moefleet device release ${id}, then run the same command again`;
  if (/revoked/i.test(said)) return `moefleet device unrevoke ${id}, or give the device another id`;
  if (/ECONNREFUSED|UNAVAILABLE|did not answer|EHOSTUNREACH|ETIMEDOUT/i.test(said)) return 'can the device reach the coordinator? It dials the address of --coordinator; see firewalls between them';
  if (/EADDRINUSE/i.test(said)) return 'something else has the port of its HTTP API: give another with --http';
  if (/max-cache|token cycle/i.test(said)) return 'give it more cache: --cache SIZE';
  return 'see the host\'s log, and on the device: journalctl -u moefleet-agent, or agent.log in its state folder';
}

const round = (seconds: number) => Math.round(seconds * 100) / 100;
