/**
 * The learner on real agents: six of them, the real engine on the reference model with wide experts, each in control groups of
 * its own that cap its memory, page cache included, and its disk. Each has a cache limit of its own; or, with --most, all are
 * allowed that many experts a layer, and what each can hold its control group decides: its agent finds out under way, and gives
 * way. Coordinator, Redis, learner and agents are the programs that run on devices. Measured one after another, the others idle:
 * tokens/s on the same prompts from a cold cache, first at λ 0 with all of its cache, then with what the learner has chosen; and
 * what that costs in cross-entropy, which each agent measures itself, on text that the learner has not seen, at the spec in force
 * and at λ 0, paired.
 *
 * Needs root (control groups) and a machine with nothing else running: one to two minutes on two cores for two to four agents with 64, 512 and 512
 * tokens (--tokens, --text-tokens, --surface-tokens). --agents gives each the experts of a layer for which its group has memory,
 * beside what an agent needs anyway (--beside, of which it keeps --memory-low free), and its disk.
 *
 *   node test/bench/learner-real.mjs [--width 512] [--tokens 96] [--text-tokens 2048] [--surface-tokens 2048] [--rounds 1]
 *     [--most 32 --beside 90MiB --memory-low 20MiB] [--texts code,wikitext] [--agents NAME=CAPACITY:MB_PER_SECOND,...] [--json]
 *
 * A round is a run of the learner on what was seen since, and the measurements with what it has chosen then.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import { fixtures, numbers, readFlags, refuse, root, widened } from './shared.mjs';

const require = createRequire(import.meta.url);
const load = (...path) => require(join(root, ...path));
const { inspectModel } = require('@moefleet/edge-agent/engine');
const { parseSize } = require('@moefleet/runtime');
const { findCgroups } = load('services', 'cli', 'dist', 'bench', 'cgroup.js');
const { deviceOf } = load('services', 'cli', 'dist', 'bench', 'block-device.js');
const { LocalFleet } = load('services', 'demo', 'dist', 'local-fleet.js');
const { moefleet } = load('services', 'demo', 'dist', 'command-line.js');

const values = readFlags({
  width: { type: 'string', default: '512' }, tokens: { type: 'string', default: '96' }, 'text-tokens': { type: 'string', default: '2048' },
  'surface-tokens': { type: 'string', default: '2048' }, most: { type: 'string' }, beside: { type: 'string', default: '420MiB' }, 'memory-low': { type: 'string' }, rounds: { type: 'string', default: '1' },
  agents: { type: 'string', default: 'phone-a=8:40,phone-b=10:60,jetson-a=12:80,jetson-b=16:40,minipc-a=20:120,minipc-b=24:60' },
  texts: { type: 'string', default: 'code,wikitext' }, 'work-dir': { type: 'string' }, json: { type: 'boolean', default: false },
});
const [rounds] = numbers(values, 'rounds');
const MIB = 2 ** 20;
/** Of the reference model's vocabulary, on none of the texts more. */
const CHARACTERS_PER_TOKEN = 5;
const PROMPTS = ['The river rises in the hills and', 'In 1923 the company moved its', 'def read_file(path):', 'Question: A farmer has 12 boxes of'];

const plans = values.agents.split(',').map((one) => {
  const [, id, capacity, speed] = /^([\w-]+)=(\d+):(\d+)$/.exec(one) ?? refuse(`--agents: expected NAME=CAPACITY:MB_PER_SECOND, found '${one}'`);
  return { id, capacity: Number(capacity), megabytesPerSecond: Number(speed) };
});

const model = widened(Number(values.width), values['work-dir']);
const info = await inspectModel(model);
const perCapacity = info.expertBytes.reduce((sum, bytes) => sum + Number(bytes), 0);
const disk = deviceOf(model) ?? refuse(`${model}: the disk it lies on cannot be told, so that it cannot be throttled`);
for (const plan of plans) {
  plan.maxCacheBytes = Number(values.most ?? plan.capacity) * perCapacity;
  plan.memoryBytes = parseSize(values.beside) + plan.capacity * perCapacity;
}

const folder = mkdtempSync('/tmp/moefleet-learner-real-');
const texts = values.texts.split(',').map((name) => fixtures.texts.find((path) => basename(path, '.txt') === name) ?? refuse(`--texts: '${name}' is none of ${fixtures.texts.map((path) => basename(path, '.txt')).join(', ')}`));
const halves = texts.map((path) => {
  const text = readFileSync(path, 'utf8');
  const learn = join(folder, basename(path));
  writeFileSync(learn, text.slice(0, text.length / 2));
  return { learn, unseen: text.slice(text.length / 2) };
});
// Of each text as many characters as make its share of the tokens, with room to spare.
const unseen = join(folder, 'unseen.txt');
writeFileSync(unseen, halves.map(({ unseen: text }) => text.slice(0, Math.ceil(Number(values['text-tokens']) * CHARACTERS_PER_TOKEN / halves.length))).join('\n'));

const began = performance.now();
const say = (text) => process.stderr.write(`${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s  ${text}\n`);
const fleet = new LocalFleet({ folder, keep: false, logLevel: 'info' });
const groups = [];
let stopping = null;
const stop = () => (stopping ??= fleet.stop().finally(() => {
  for (const group of groups) group.remove();
  rmSync(folder, { recursive: true, force: true });
}));
process.once('SIGINT', () => void stop().then(() => process.exit(130)));
process.once('SIGTERM', () => void stop().then(() => process.exit(143)));
const ask = (...args) => moefleet(args, { operator: fleet.operator });

async function until(what, check, patienceMs = 300_000) {
  const deadline = Date.now() + patienceMs;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`${what}: not within ${patienceMs / 1000} s`);
    await new Promise((resolve) => { setTimeout(resolve, 250); });
  }
}

let learner;
const runsDone = () => learner.log().split('"msg":"learner run done"').length - 1;
async function learns() {
  const before = runsDone();
  await ask('learner', 'now');
  await until('the learner has run', () => runsDone() > before);
  await until('what it proposed is in force', settled);
}

/** Speed is learnt from two looks with one setting between them. */
async function looks() {
  const seen = new Map();
  for (const { id } of plans) seen.set(id, (await device(id)).telemetry.sequence);
  await until('all have told how they are now', async () => (await ask('devices', 'list')).devices.every(({ id, telemetry }) => telemetry.sequence !== seen.get(id)));
  await learns();
}

/** A change under way ends a measurement. */
async function settled() {
  const { rollouts } = await ask('rollout', 'list');
  if (rollouts.some(({ state }) => state === 'RUNNING')) return false;
  return (await ask('devices', 'list')).devices.every(({ drift }) => !drift);
}

const device = async (id) => (await ask('devices', 'show', id)).device;

/** The learner's two looks at an agent, before and after, are two frames with all that was decoded between them. */
async function told(id, decoded) {
  await until(`${id} has told of it`, async () => Number((await device(id)).telemetry?.decodeTokens ?? 0) >= decoded, 60_000);
}

async function measured(plan, withText) {
  const prompts = PROMPTS.flatMap((prompt) => ['--prompt', prompt]);
  const figures = await ask('measure', plan.id, ...prompts, '--tokens', String(Math.ceil(Number(values.tokens) / PROMPTS.length) + 1), '--temperature', '1', '--seed', '7',
    ...(withText ? ['--text', unseen, '--text-tokens', values['text-tokens']] : []));
  plan.decoded = (plan.decoded ?? 0) + figures.decodeTokens;
  await told(plan.id, plan.decoded);
  say(`${plan.id}: λ ${figures.spec.lambda} topJ ${figures.spec.topJ} capacity ${capacityText(figures.spec.capacities)}: ${figures.tokensPerSecond.toFixed(2)} tokens/s, ${(figures.missRate * 100).toFixed(1)}% miss${withText ? `, ${figures.perplexityLossPercent.toFixed(2)}% perplexity` : ''}`);
  const { spec, tokensPerSecond, missRate, flashBytesPerToken, perplexityLossPercent, crossEntropyLoss, crossEntropyLossStderr, textTokens } = figures;
  return { lambda: spec.lambda, topJ: spec.topJ, capacities: spec.capacities, tokensPerSecond, missRate, flashBytesPerToken, textTokens, crossEntropyLoss, crossEntropyLossStderr, perplexityLossPercent };
}

function capacityText(capacities) {
  const [low, high] = [Math.min(...capacities), Math.max(...capacities)];
  return low === high ? String(low) : `${low}-${high}`;
}

function predictedText({ tokensPerSecond, sd }) {
  return tokensPerSecond === null ? '-' : `${tokensPerSecond.toFixed(1)} ± ${sd.toFixed(1)}`;
}

const explained = (id) => ask('learner', 'explain', id);

try {
  await fleet.startRedis();
  // What λ costs is measured below; a gate would have all six measure themselves at once.
  await fleet.startCoordinator(['--learn-every', '0', '--learner-gate', 'none', '--expert-use-interval', '0']);
  for (const plan of plans) {
    const limits = { memoryBytes: plan.memoryBytes, read: { device: disk, bytesPerSecond: plan.megabytesPerSecond * 1e6 } };
    const found = findCgroups(limits);
    if (found.missing) refuse(`control groups: ${found.missing}`);
    plan.group = found.cgroups.make(`moefleet-${plan.id}-${process.pid}`, limits);
    groups.push(plan.group);
    plan.agent = await fleet.startAgent({
      id: plan.id, model, maxCache: String(plan.maxCacheBytes), labels: `class=${plan.id.split('-')[0]}`, launcher: plan.group.launcher, flags: values['memory-low'] ? ['--memory-low', values['memory-low']] : [],
    });
  }
  for (const plan of plans) await until(`${plan.id} is ready`, async () => (await fetch(`${plan.agent.httpUrl}/healthz`).catch(() => null))?.ok);
  say(`${plans.length} agents ready, experts of ${(Number(info.expertBytes[0]) / MIB).toFixed(2)} MiB`);
  await ask('lambda', 'set', '0', '--all', '--now', '--why', 'the learner comes later');
  learner = await fleet.startLearner(model, halves.map(({ learn }) => learn).join(','), ['--tokens', values['surface-tokens'], '--threads', '0']);
  await learner.logLine('model and text read');
  await learns();
  say(`the learner has measured what λ costs: ${/"measuredPoints":(\d+)/.exec(learner.log())?.[1]} points`);

  // What an agent can hold shows while it works.
  if (values.most) {
    for (const plan of plans) await measured(plan, false);
    await learns();
  }
  await looks();
  for (const plan of plans) plan.before = await measured(plan, false);
  await learns();
  await ask('lambda', 'auto', '--all', '--why', 'the learner takes over');
  for (let round = 1; round <= rounds; round += 1) {
    if (round > 1) {
      await learns();
      await looks();
    }
    for (const plan of plans) {
      const { chosen: choice, reason } = await explained(plan.id);
      if (choice === null) throw new Error(`${plan.id}: nothing is proposed: ${reason}`);
      // Its capacities are in force as far as the device has the memory: a cut of its own stands.
      await until(`${plan.id} runs what was chosen`, async () => {
        const { drift, reported } = await device(plan.id);
        return !drift && reported.effective.lambda === choice.lambda && reported.effective.topJ === choice.topJ;
      }, 60_000);
      plan.predicted = { tokensPerSecond: choice.tokensPerSecond, sd: choice.tokensPerSecondSd, missRate: choice.missRate };
      say(`${plan.id}: predicted: ${predictedText(plan.predicted)}, ${(choice.missRate * 100).toFixed(1)}% miss`);
      plan.after = await measured(plan, round === rounds);
    }
  }
  await learns();
  for (const plan of plans) plan.why = (await explained(plan.id)).reason;
  report();
} finally {
  await stop();
}

function report() {
  const rows = plans.map(({ id, capacity, megabytesPerSecond, memoryBytes, maxCacheBytes, before, after, predicted, why, group }) => ({
    id, memoryBytes, maxCacheBytes, capacityLimit: capacity, megabytesPerSecond, peakBytes: group.peakBytes(), outOfMemoryKills: group.outOfMemoryKills(), before, after, predicted, speedup: after.tokensPerSecond / before.tokensPerSecond, why,
  }));
  const result = { model: basename(model), expertBytes: Number(info.expertBytes[0]), experts: info.experts, decodeTokens: Number(values.tokens), textTokens: Number(values['text-tokens']), surfaceTokens: Number(values['surface-tokens']), rounds, seconds: Math.round((performance.now() - began) / 1000), agents: rows };
  if (values.json) return void process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
  process.stdout.write([
    '| agent | memory | disk | capacity | λ, topJ learnt | miss rate | predicted | tokens/s | predicted (± one standard deviation) | perplexity, closed loop |', '|---|---|---|---|---|---|---|---|---|---|',
    ...rows.map(({ id, memoryBytes, maxCacheBytes, megabytesPerSecond, before, after, predicted }) => `| ${id} | ${Math.round(memoryBytes / MIB)} MiB, ${(maxCacheBytes / MIB).toFixed(1)} of experts | ${megabytesPerSecond} MB/s | ${capacityText(after.capacities)} of ${info.experts} | ${after.lambda}, ${after.topJ} | ${(before.missRate * 100).toFixed(1)}% → ${(after.missRate * 100).toFixed(1)}% | ${(predicted.missRate * 100).toFixed(1)}% | ${before.tokensPerSecond.toFixed(2)} → ${after.tokensPerSecond.toFixed(2)} (${(after.tokensPerSecond / before.tokensPerSecond).toFixed(2)}x) | ${predictedText(predicted)} | ${after.perplexityLossPercent >= 0 ? '+' : ''}${after.perplexityLossPercent.toFixed(2)}% ± ${(after.crossEntropyLossStderr * 100).toFixed(2)} |`),
    '', `${result.seconds} s in all`, '',
  ].join('\n'));
}
