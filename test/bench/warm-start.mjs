/**
 * What a warm start is worth: misses of a fresh agent's first tokens from a cold cache, from one filled with the list that
 * the fleet has made on the same domain, and from one filled with another domain's. Devices of the fleet continue prompts
 * of each domain; their uses go through the coordinator's own functions to the list; fresh engines then continue prompts
 * of a text that none of them has seen. At λ 0 all write the same, token for token, so the misses are paired.
 *
 *   node test/bench/warm-start.mjs [--model FILE] [--domain NAME=LEARN_FILE,UNSEEN_FILE ...] [--devices 8] [--learn-tokens 512]
 *     [--prompts 16] [--prompt-tokens 8] [--tokens 64] [--capacities 8,13,16,24] [--top-j 1] [--lambdas 0,0.2] [--eviction adaptive]
 *     [--threads 1] [--time MB_PER_SECOND] [--json]
 *
 * Without --domain: code, math and wikitext of test/fixtures, the first half to learn from and the second unseen.
 * Each row also says what an agent saves that never restarted: it has served the learning half's prompts, and goes on from
 * one prompt to the next. No list can be expected to do much better than that. At λ 0 it says besides what the best start and
 * the best evictions would save, to whoever knew the text (warm-start-bound.mjs).
 *
 * --time also measures the time to the first token on a disk paced to so many MB/s, in turns: cold; asked as the fill
 * begins; after the fill.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import { eventsOf, leastMisses } from './warm-start-bound.mjs';
import { fixtures, median, numbers, readFlags, refuse, root } from './shared.mjs';

const require = createRequire(import.meta.url);
const { Engine, inspectModel } = require('@moefleet/edge-agent/engine');
const { addContribution, contributionOf, emptyProfile, rankExperts } = require(join(root, 'coordinator', 'dist', 'warm', 'warm-profile.js'));

const values = readFlags({
  model: { type: 'string', default: fixtures.model }, domain: { type: 'string', multiple: true, default: [] },
  devices: { type: 'string', default: '8' }, 'learn-tokens': { type: 'string', default: '512' }, prompts: { type: 'string', default: '16' },
  'prompt-tokens': { type: 'string', default: '8' }, tokens: { type: 'string', default: '64' }, capacities: { type: 'string', default: '8,13,16,24' },
  lambdas: { type: 'string', default: '0,0.2' }, 'top-j': { type: 'string', default: '1' }, eviction: { type: 'string', default: 'adaptive' }, threads: { type: 'string', default: '1' },
  time: { type: 'string' }, json: { type: 'boolean', default: false },
});
const [capacities, lambdas] = [numbers(values, 'capacities'), numbers(values, 'lambdas')];
const [tokens, promptTokens, prompts] = [Number(values.tokens), Number(values['prompt-tokens']), Number(values.prompts)];
const info = await inspectModel(values.model);
const layers = info.moeLayers.length;

const spec = (capacity, lambda) => ({ routing: 'cache_prior', lambda, topJ: Number(values['top-j']), capacities: new Array(layers).fill(capacity), generation: 0, eviction: values.eviction });
const open = (capacity, lambda, more = {}) => Engine.open({
  modelPath: values.model, contextTokens: 0, threads: Number(values.threads), lanes: 2, directIo: true, prefillBytes: 0, keepAll: false, spec: spec(capacity, lambda), ...more,
});

let requests = 0;
const generate = (engine, prompt, maxTokens, seed, onStep = () => {}) => {
  requests += 1;
  return engine.generate({ requestId: `bench-${requests}`, prompt, maxTokens, temperature: 1, topP: 1, seed, coldCache: false, captureRouter: false }, onStep);
};

/** `count` prompts, spread evenly over the text. */
function promptsOf(engine, text, count) {
  return Array.from({ length: count }, (_, i) => engine.tokenize(text.slice(Math.floor(i * (text.length - 2000) / count)).replace(/^\S*\s/, '').slice(0, 2000), true, false).slice(0, promptTokens));
}

/** The list that devices make which continue prompts of the text, a report each. */
async function learn(text) {
  const engine = await open(info.experts, 0, { keepAll: true });
  const profile = emptyProfile({ layers, experts: info.experts }, 0);
  const devices = Number(values.devices);
  const each = promptsOf(engine, text, devices * 4);
  let before = engine.expertUse().wanted;
  for (let device = 0; device < devices; device += 1) {
    for (let i = 0; i < 4; i += 1) await generate(engine, each[device * 4 + i], Math.ceil(Number(values['learn-tokens']) / 4), 1000 + device * 4 + i);
    const now = engine.expertUse().wanted;
    const since = now.map((count, at) => count - before[at]);
    before = now;
    const total = since.subarray(0, info.experts).reduce((sum, count) => sum + count, 0);
    const made = contributionOf({
      sequence: 1n, modelHash: '', experts: info.experts, tokens: BigInt(Math.ceil(total / info.topK)),
      layers: Array.from({ length: layers }, (_, layer) => ({ wanted: [...since.subarray(layer * info.experts, (layer + 1) * info.experts)], chosen: [] })),
    }, { layers, experts: info.experts, topK: info.topK });
    if (made.refused) throw new Error(made.refused);
    addContribution(profile, made);
  }
  await engine.close();
  return rankExperts(null, profile).map((experts) => Int32Array.from(experts));
}

/** Misses of fresh engines that continue each prompt; `ranked` null: cold. */
function fresh(engine, each, ranked) {
  return continued(engine, each, async () => {
    await engine.dropCache();
    if (ranked) await engine.warm(ranked);
  });
}

/** Misses of one engine that has served what devices learn from, and keeps its cache from prompt to prompt. */
async function veteran(engine, each, learnt) {
  await engine.dropCache();
  for (const [i, prompt] of promptsOf(engine, learnt, 4).entries()) await generate(engine, prompt, Math.ceil(Number(values['learn-tokens']) / 4), 2000 + i);
  return continued(engine, each, async () => {});
}

async function continued(engine, each, prepare) {
  const sum = { prompt: 0, decode: 0, tokens: 0, text: [] };
  for (const [i, prompt] of each.entries()) {
    await prepare();
    const text = [];
    const result = await generate(engine, prompt, tokens + 1, i, (step) => text.push(step.token));
    sum.prompt += result.prefillMisses;
    sum.decode += result.decodeMisses;
    sum.tokens += result.completionTokens - 1;
    sum.text.push(text.join(','));
  }
  return sum;
}

/** Misses that nobody could have avoided on what these prompts wrote: of one pass, with nothing bent. */
async function unavoidable(engine, each, texts, capacity) {
  let least = 0;
  for (const [i, prompt] of each.entries()) {
    // The last token written is never routed.
    const written = Int32Array.from([...prompt, ...texts[i].split(',').map(Number)]);
    const count = written.length - 1;
    const { routes } = await engine.evaluate({ tokens: written, context: count, promptTokens: prompt.length, spec: { ...engine.spec(), lambda: 0 }, stepped: false, recordRoutes: true });
    for (const events of eventsOf(routes, layers, count, info.topK)) least += leastMisses(events, prompt.length, info.experts, capacity);
  }
  return least;
}

const share = (now, before) => (before === 0 ? 0 : 1 - now / before);

function domainsOf() {
  if (values.domain.length === 0) return fixtures.texts.map((path) => {
    const text = readFileSync(path, 'utf8');
    return { name: basename(path, '.txt'), learn: text.slice(0, text.length / 2), unseen: text.slice(text.length / 2) };
  });
  return values.domain.map((one) => {
    const [, name, learnFile, unseenFile] = /^([^=]+)=([^,]+),(.+)$/.exec(one) ?? [];
    if (!name) refuse(`--domain: expected NAME=LEARN_FILE,UNSEEN_FILE, found ${one}`);
    return { name, learn: readFileSync(learnFile, 'utf8').slice(0, 1_000_000), unseen: readFileSync(unseenFile, 'utf8').slice(0, 1_000_000) };
  });
}

const domains = domainsOf();
for (const domain of domains) {
  process.stderr.write(`${domain.name}: learning\n`);
  domain.ranked = await learn(domain.learn);
}
const rows = [];
for (const lambda of lambdas) {
  for (const capacity of capacities) {
    const engine = await open(capacity, lambda);
    for (const domain of domains) {
      process.stderr.write(`${domain.name}: λ ${lambda}, capacity ${capacity}\n`);
      const each = promptsOf(engine, domain.unseen, prompts);
      const cold = await fresh(engine, each, null);
      const own = await fresh(engine, each, domain.ranked);
      const old = await veteran(engine, each, domain.learn);
      const others = [];
      for (const other of domains) if (other !== domain) others.push({ list: other.name, ...(await fresh(engine, each, other.ranked)) });
      if (lambda === 0 && [own, old, ...others].some((run) => run.text.join() !== cold.text.join())) throw new Error('a warm cache has changed what is written at λ 0');
      const figures = (run) => ({ promptMisses: run.prompt, decodeMisses: run.decode, fewer: share(run.prompt + run.decode, cold.prompt + cold.decode), fewerInDecode: share(run.decode, cold.decode) });
      const least = lambda === 0 ? await unavoidable(engine, each, cold.text, capacity) : null;
      const bound = least === null ? null : share(least, cold.prompt + cold.decode);
      rows.push({ domain: domain.name, lambda, capacity, bound, experts: info.experts, tokens: cold.tokens, cold: { promptMisses: cold.prompt, decodeMisses: cold.decode }, own: figures(own), veteran: figures(old), others: others.map((run) => ({ list: run.list, ...figures(run) })) });
    }
    await engine.close();
  }
}
const times = values.time === undefined ? null : await timeToFirstToken();
process.stdout.write(values.json ? `${JSON.stringify({ model: info.name, eviction: values.eviction, promptTokens, prompts, rows, firstToken: times }, null, 2)}\n` : table());

/** Milliseconds from asking to the first token, each prompt in turns; medians, and of the paired differences to cold. */
async function timeToFirstToken() {
  const capacity = capacities[0];
  const engine = await open(capacity, 0, { readBytesPerSecond: Number(values.time) * 1e6 });
  const [domain] = domains;
  const each = promptsOf(engine, domain.unseen, prompts);
  const modes = { cold: [], beginning: [], filled: [] };
  const order = Object.keys(modes);
  const ask = async (prompt) => {
    const beganMs = performance.now();
    let firstMs = 0;
    await generate(engine, prompt, 1, 1, () => { firstMs ||= performance.now() - beganMs; });
    return firstMs;
  };
  await ask(each[0]);
  for (let round = 0; round < 3; round += 1) {
    for (const prompt of each) {
      // Every way comes in every place.
      for (const mode of order) {
        await engine.dropCache();
        let filling = null;
        if (mode === 'filled') await engine.warm(domain.ranked);
        if (mode === 'beginning') {
          filling = engine.warm(domain.ranked);
          // Some of it is under way, as when a request comes just after the agent is ready.
          await new Promise((resolve) => { setTimeout(resolve, 3); });
        }
        modes[mode].push(await ask(prompt));
        await filling;
      }
      order.push(order.shift());
    }
  }
  await engine.close();
  const against = (mode) => median(modes[mode].map((ms, i) => ms - modes.cold[i]));
  return {
    capacity, megabytesPerSecond: Number(values.time), samples: modes.cold.length, medianMs: Object.fromEntries(Object.entries(modes).map(([mode, ms]) => [mode, median(ms)])),
    medianDifferenceMs: { beginning: against('beginning'), filled: against('filled') },
  };
}

function table() {
  const percent = (value) => `${value > 0 ? '−' : '+'}${Math.abs(value * 100).toFixed(1)}%`;
  const lines = [
    `First ${tokens} tokens after prompts of ${promptTokens}, ${prompts} fresh starts each, misses of prompt + decode:`, '',
    '| text | λ | capacity | cold | list of the same domain | in decode alone | an agent that never restarted | at most, knowing the text | lists of others |', '|---|---|---|---|---|---|---|---|---|',
    ...rows.map(({ domain, lambda, capacity, cold, own, veteran: old, others, bound }) =>
      `| ${domain} | ${lambda} | ${capacity} of ${info.experts} | ${cold.promptMisses} + ${cold.decodeMisses} | ${own.promptMisses} + ${own.decodeMisses} (${percent(own.fewer)}) | ${percent(own.fewerInDecode)} | ${percent(old.fewer)} | ${bound === null ? '' : percent(bound)} | ${others.map((run) => `${run.list} ${percent(run.fewer)}`).join(', ')} |`),
  ];
  if (times) lines.push('', `Time to the first token, disk paced to ${times.megabytesPerSecond} MB/s, capacity ${times.capacity}, medians of ${times.samples}: cold ${times.medianMs.cold.toFixed(1)} ms; asked as the fill begins ${times.medianMs.beginning.toFixed(1)} ms (paired ${times.medianDifferenceMs.beginning.toFixed(1)}); after it ${times.medianMs.filled.toFixed(1)} ms (paired ${times.medianDifferenceMs.filled.toFixed(1)})`);
  return `${lines.join('\n')}\n`;
}
