/**
 * The main job, told in the order in which an operator would live it: bring a fleet up, see what it does at lambda 0,
 * let the learner measure and propose, watch the coordinator push, measure again, look at a trace. Every figure comes
 * from the agents' own engines; everything is done through the command line.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Child } from './child-process';
import { type CommandOptions, moefleet } from './command-line';
import { answers, countDistinct, queryTraces } from './jaeger';
import { buildJaeger, canBuildJaeger, findJaeger, HOW_TO_GET_JAEGER } from './jaeger-binary';
import type { LocalFleet, RunningAgent } from './local-fleet';
import type { Progress } from './progress';
import type { Condition, DemoReport, TraceReport } from './report';

export interface DemoOptions {
  tokensPerPrompt: number;
  /** where prompts and texts are written */
  folder: string;
  signal: AbortSignal;
}

const FIXTURES = join(__dirname, '..', '..', '..', 'test', 'fixtures');
const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
const TEXT = join(FIXTURES, 'wikitext.txt');

/** Cache budgets of a quarter, three eighths and half of the reference model's 32 experts per layer (78 KB each). */
const DEVICES = [
  { id: 'phone-1', maxCache: '3.6MiB', labels: 'class=phone' },
  { id: 'jetson-1', maxCache: '5.4MiB', labels: 'class=jetson' },
  { id: 'minipc-1', maxCache: '7.2MiB', labels: 'class=minipc' },
];

// The learner fits its surface to the first part of the text; the agents are measured on the rest.
const LEARNER_BYTES = 100_000;
const LEARNER_TOKENS = 4096;
const MEASURED_TOKENS = 4096;
/**
 * The agents stand still while the learner measures, so that it may have the processors, all but one of the physical ones (0): where threads
 * wait for each other, one that anything else keeps from running keeps all of them. More than four do not help a model as small.
 */
const LEARNER_THREADS = availableParallelism() > 8 ? 4 : 0;
const PROMPTS = 6;
const PROMPT_WORDS = 24;

/** What `moefleet measure --json` prints, as far as it matters here. */
interface Measured {
  spec: { lambda: number; topJ: number; capacities: number[] };
  missRate: number;
  tokensPerSecond: number;
  flashBytesPerToken: number;
  crossEntropyLoss: number;
}

interface DeviceJson {
  id: string;
  online: boolean;
  info: { model: { status: string } | null } | null;
  missRate: number | null;
  reported: { appliedGeneration: number; effective: { lambda: number } | null } | null;
  desiredGeneration: number;
  drift: boolean;
  telemetry: { misses: { counted: number; spooled: number } } | null;
}

interface LearnerJson {
  activity: string;
  proposals: { deviceId: string; proposed: boolean; lambda: number; topJ: number; reason: string }[];
}

interface RolloutJson { id: string; state: string; reason: string }

export async function runDemo(fleet: LocalFleet, progress: Progress, options: DemoOptions): Promise<DemoReport> {
  const { signal } = options;
  await bringJaeger(fleet, progress);
  signal.throwIfAborted();

  progress.step('starting Redis and the coordinator');
  await fleet.startRedis();
  await fleet.startCoordinator();
  signal.throwIfAborted();
  const command: CommandOptions = { operator: fleet.operator, signal, onProgress: (line) => progress.note(line) };

  progress.step(`starting three agents with cache limits of ${DEVICES.map((device) => device.maxCache).join(', ')}`);
  const agents: RunningAgent[] = [];
  for (const device of DEVICES) agents.push(await fleet.startAgent({ ...device, model: MODEL }));
  await waitFor('all agents online with their model loaded', async () => {
    const devices = await listDevices(command);
    return devices.length === DEVICES.length && devices.every((device) => device.online && device.info?.model?.status === 'READY');
  }, signal);

  const work = textFiles(options.folder);
  progress.step('measuring each agent at λ = 0: the same prompts, from a cold cache');
  const before = await measureAll(work, command, progress, options);

  progress.step('starting the learner: it measures what λ costs this model in quality, and proposes');
  const learnerProcess = await fleet.startLearner(MODEL, work.learnerText, ['--tokens', String(LEARNER_TOKENS), '--threads', String(LEARNER_THREADS)]);
  const learner = await waitForLearner(learnerProcess, command, progress, signal);
  for (const proposal of learner.proposals) {
    progress.step(`  ${proposal.deviceId}: ${proposal.reason}`);
  }
  progress.step('waiting until the rollout of it is done: every device has applied it and measured its quality');
  await waitFor('the rollout of the learner\'s proposal', () => rolloutsAreDone(command), signal, 180_000);
  await waitFor('all devices applied the learner\'s proposal', async () => {
    const devices = await listDevices(command);
    return devices.every((device) => !device.drift && device.desiredGeneration > 0 &&
      (device.reported?.effective?.lambda ?? 0) === learner.proposals.find((one) => one.deviceId === device.id)?.lambda);
  }, signal);

  progress.step('measuring each agent again: the same prompts, from a cold cache');
  const after = await measureAll(work, command, progress, options);

  progress.step(`asking one agent for 96 tokens${fleet.jaeger ? ' and reading the trace back from Jaeger' : ''}`);
  const trace = await traceOneRequest(fleet, agents[0]!, command, signal);

  return {
    devices: DEVICES.map(({ id }) => ({
      id, before: condition(before.get(id)!), after: condition(after.get(id)!), crossEntropyLoss: after.get(id)!.crossEntropyLoss,
    })),
    trace,
  };
}

async function bringJaeger(fleet: LocalFleet, progress: Progress): Promise<void> {
  const elsewhere = process.env['JAEGER_URL'];
  if (elsewhere) {
    if (!URL.canParse(elsewhere)) throw new Error(`JAEGER_URL: "${elsewhere}" is no URL; write it as http://HOST:16686`);
    if (!await answers(elsewhere)) throw new Error(`JAEGER_URL: nothing answers at ${elsewhere}; start Jaeger there, or unset JAEGER_URL`);
    const otlpUrl = process.env['OTEL_EXPORTER_OTLP_ENDPOINT'] ?? `http://${new URL(elsewhere).hostname}:4318`;
    progress.step(`using the Jaeger at ${elsewhere} (OTLP: ${otlpUrl})`);
    fleet.useJaeger({ queryUrl: elsewhere.replace(/\/$/, ''), otlpUrl });
    return;
  }
  let binary = findJaeger();
  if (!binary && canBuildJaeger()) {
    progress.step('building Jaeger with Go (about five minutes, once)');
    binary = await buildJaeger((line) => progress.note(line)).catch((error: Error) => {
      progress.step(error.message);
      return null;
    });
  }
  if (!binary) {
    progress.step(`going on without traces. ${HOW_TO_GET_JAEGER}`);
    return;
  }
  progress.step('starting Jaeger');
  await fleet.startJaeger(binary);
}

interface WorkFiles { learnerText: string; measuredText: string; promptFiles: string[]; }

/** The text in two parts that do not overlap, and prompts from the second. */
function textFiles(folder: string): WorkFiles {
  const text = readFileSync(TEXT, 'utf8');
  const cut = text.indexOf('\n', LEARNER_BYTES);
  const learnerText = join(folder, 'learner.txt');
  const measuredText = join(folder, 'measured.txt');
  writeFileSync(learnerText, text.slice(0, cut));
  writeFileSync(measuredText, text.slice(cut));
  const paragraphs = text.slice(cut).split('\n').filter((line) => line.split(' ').length > PROMPT_WORDS * 2);
  const promptFiles = Array.from({ length: PROMPTS }, (_, i) => {
    const path = join(folder, `prompt-${i}.txt`);
    writeFileSync(path, paragraphs[Math.floor((i * paragraphs.length) / PROMPTS)]!.trim().split(' ').slice(0, PROMPT_WORDS).join(' '));
    return path;
  });
  return { learnerText, measuredText, promptFiles };
}

async function measureAll(work: WorkFiles, command: CommandOptions, progress: Progress, options: DemoOptions): Promise<Map<string, Measured>> {
  const results = new Map<string, Measured>();
  for (const { id } of DEVICES) {
    const measured = await moefleet<Measured>([
      'measure', id, ...work.promptFiles.flatMap((path) => ['--prompts', path]), '--tokens', String(options.tokensPerPrompt),
      '--temperature', '0.8', '--seed', '1', '--text', work.measuredText, '--text-tokens', String(MEASURED_TOKENS),
    ], command);
    results.set(id, measured);
    progress.step(`  ${id}: miss rate ${(measured.missRate * 100).toFixed(1)}%, ${measured.tokensPerSecond.toFixed(0)} tokens/s`);
  }
  return results;
}

function condition(measured: Measured): Condition {
  const { capacities, lambda, topJ } = measured.spec;
  return {
    lambda, topJ,
    capacity: capacities.reduce((sum, capacity) => sum + capacity, 0) / capacities.length,
    missRate: measured.missRate,
    tokensPerSecond: measured.tokensPerSecond,
    flashBytesPerToken: measured.flashBytesPerToken,
  };
}

async function waitForLearner(child: Child, command: CommandOptions, progress: Progress, signal: AbortSignal): Promise<LearnerJson> {
  return waitFor('a proposal for every device', async () => {
    const learner = await moefleet<LearnerJson>(['learner', 'show'], { ...command, onProgress: undefined });
    if (learner.activity) progress.note(learner.activity);
    child.throwIfEnded('its proposals');
    const waiting = DEVICES.filter(({ id }) => !learner.proposals.some((one) => one.deviceId === id && one.proposed));
    return waiting.length === 0 ? learner : null;
  }, signal, 600_000);
}

/** null while one is under way; throws for one that was held or taken back. */
async function rolloutsAreDone(command: CommandOptions): Promise<true | null> {
  const { rollouts } = await moefleet<{ rollouts: RolloutJson[] }>(['rollout', 'list'], { ...command, onProgress: undefined });
  const bad = rollouts.find(({ state }) => ['INCONCLUSIVE', 'PAUSED', 'ROLLING_BACK', 'ROLLED_BACK'].includes(state));
  if (bad) throw new Error(`rollout ${bad.id} is ${bad.state}: ${bad.reason}`);
  return rollouts.every(({ state }) => ['DONE', 'SUPERSEDED'].includes(state)) || null;
}

async function traceOneRequest(fleet: LocalFleet, agent: RunningAgent, command: CommandOptions, signal: AbortSignal): Promise<TraceReport | null> {
  const response = await fetch(`${agent.httpUrl}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'default', prompt: 'The city was founded in', max_tokens: 96, temperature: 0, moefleet: { cold_cache: true } }),
    signal,
  });
  if (!response.ok) throw new Error(`${agent.id}: HTTP ${response.status}: ${await response.text()}`);
  const { moefleet: account } = await response.json() as { moefleet: { misses: number; trace_ids: string[] } };
  if (!fleet.jaeger) return null;
  const { queryUrl } = fleet.jaeger;
  const flashReadSpans = await waitFor('the trace in Jaeger', async () => {
    const found = countDistinct(await queryTraces(queryUrl, account.trace_ids), 'flash.read');
    return found >= account.misses ? found : null;
  }, signal, 60_000);
  const { url } = await waitFor('the trace\'s address at the coordinator', async () => {
    const latest = await moefleet<{ url: string }>(['trace', agent.id], command).catch(() => null);
    return latest?.url.includes(account.trace_ids[0]!) ? latest : null;
  }, signal);
  return { id: account.trace_ids[0]!, url, flashReadSpans, missesCounted: account.misses };
}

async function listDevices(command: CommandOptions): Promise<DeviceJson[]> {
  return (await moefleet<{ devices: DeviceJson[] }>(['devices', 'list'], { ...command, onProgress: undefined })).devices;
}

async function waitFor<T>(what: string, check: () => Promise<T | null | false>, signal: AbortSignal, timeoutMs = 60_000): Promise<T> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    signal.throwIfAborted();
    const value = await check();
    if (value !== null && value !== false) return value;
    if (Date.now() > deadline) throw new Error(`waited ${timeoutMs / 1000} s in vain for ${what}`);
    await sleep(250, undefined, { signal });
  }
}
