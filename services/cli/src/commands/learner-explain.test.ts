import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceKnowledge, DriftKnowledge, type ExplainLearnerResponse, Proposal, QualitySurface, Routing } from '@moefleet/proto';
import { type Captured, runCaptured } from '../testing/run-captured';
import { device, ScriptedOperator } from '../testing/scripted-operator';

let operator: ScriptedOperator;
let folder: string;
const run = (...args: string[]): Promise<Captured> => runCaptured(['learner', 'explain', ...args], { MOEFLEET_OPERATOR: operator.address });

beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'moefleet-explain-')); });
afterAll(() => rmSync(folder, { recursive: true }));
beforeEach(async () => {
  operator = new ScriptedOperator();
  await operator.start();
});
afterEach(() => operator.stop());

const estimate = (mean: number, stderr: number) => ({ mean, stderr, upper: mean + 1.645 * stderr });
const setting = (lambda: number, missRate: number, tokensPerSecond: number, loss: number) => ({
  lambda, topJ: 1, routing: Routing.ROUTING_CACHE_PRIOR, capacities: [16, 16], loss: estimate(loss, 0.0005), worst: { domain: 'code', loss: estimate(loss * 1.5, 0.001) },
  missRate, tokensPerSecond, tokensPerSecondSd: 1, measured: true,
});

function explained(changed: Partial<DeviceKnowledge> = {}): ExplainLearnerResponse {
  const model = { ...device('a').info!.model!, expertBytes: [1n << 20n, 1n << 20n], tokenCycleBytes: 8n << 20n };
  return {
    device: device('a', { info: { ...device('a').info!, model } }),
    proposal: Proposal.fromPartial({ deviceId: 'a', proposed: true, lambda: 0.2, reason: 'λ 0.2 topJ 1 at capacity 16 (the device\'s limit): ...; bound by the budget: ...' }),
    knowledge: DeviceKnowledge.fromPartial({
      deviceId: 'a', modelHash: 'abc123', deviceClass: 'phone',
      speed: { windows: 12n, mean: { compute: 20, reading: 4 }, sd: { compute: 0.5, reading: 0.2 }, priorDevices: 9, readNs: 2e6, readBytes: 262_144, observedTokensPerSecond: 38, observedMibPerToken: 1.2, driftCause: 'reading', driftSlower: true, driftWindow: 7n },
      memory: { safeBytes: 32n << 20n, badBytes: 40n << 20n, shortages: 2 },
      outcomes: [
        { lambda: 0, capacities: [16, 16], windows: 4n, slots: 100n, misses: 30n, observedTokensPerSecond: 30 },
        { lambda: 0.2, topJ: 1, capacities: [16, 16], windows: 8n, slots: 100n, misses: 12n, predictedTokensPerSecond: 41, predictedTokensPerSecondSd: 2.5, observedTokensPerSecond: 38, drifted: true },
      ],
      choice: {
        chosen: setting(0.2, 0.12, 41, 0.006), baseline: setting(0, 0.3, 34, -1e-9), beyond: setting(0.23, 0.1, 42, 0.0095), boundBy: 'mean budget', why: 'best',
        meanBudgetNats: Math.log(1.01), worstBudgetNats: Math.log(1.02), maxLambda: 1, missRatio: 1.1, capacityFrom: 'device limit', capacitySplit: 'even',
        domains: [{ domain: 'wiki', loss: estimate(0.004, 0.0008) }, { domain: 'code', loss: estimate(0.009, 0.001) }], textHashes: ['aa'.repeat(32), 'bb'.repeat(32)],
      },
      ...changed,
    }),
    surfaces: ['wiki', 'code'].map((domain) => QualitySurface.fromPartial({
      domain, points: [[0, 0.3, 0], [0.2, 0.12, 0.005], [0.3, 0.09, 0.012]].map(([lambda, missRate, crossEntropyLoss]) => ({ routing: Routing.ROUTING_CACHE_PRIOR, lambda, topJ: lambda ? 1 : 0, capacities: [16, 16], missRate, crossEntropyLoss, crossEntropyLossStderr: 0.001 })),
    })),
  };
}

test('tells what was chosen and why, what it rests on, and what was seen after', async () => {
  operator.script.explained = explained();
  const { code, stdout } = await run('a');
  expect(code).toBe(0);
  expect(stdout).toMatch(/^a, model tinymoe \(abc123\)\n\nCHOSEN: λ 0.2 topJ 1 at capacity 16/);
  expect(stdout).toMatch(/quality +at most \+1.00% perplexity in the mean over the texts and \+2.00% in the worst/);
  expect(stdout).toMatch(/memory +capacity 16 of 32 experts, 32.0 MiB \(device limit\), split evenly over the layers; short 2 times, ran short at 40.0 MiB/);
  expect(stdout).toMatch(/speed +ms per token = 20.00 ± 0.50 compute \+ 4.00 ± 0.20 per MiB missed \(of late 1.20 MiB per token\), from 12 windows of its own and what 9 devices of class phone share/);
  expect(stdout).toMatch(/reads +2.00 ms for 256.0 KiB each; 50% of it is hidden/);
  expect(stdout).toMatch(/drift of speed +reading slower in window 7/);
  expect(stdout).toMatch(/its own misses +it will miss 12.0% of slots, going by what it has missed so far, where the texts miss 10.9%: every answer begins with/);
  expect(stdout).toMatch(/original +- +- +16 +- +30.0 .* not predicted: its speed was not known yet, or it was not the learner's choice$/m);
  expect(stdout).toMatch(/^chosen +cache_prior +λ 0.2 +1 +16 +12.0% +41.0 ± 1.0 +\+0.60% +\+0.68% +\+1.07% \(code\) +yes$/m);
  expect(stdout).toMatch(/^model's own routing +original +- +- +16 +30.0% +34.0 ± [0-9.]+ +\+0.00% /m);
  expect(stdout).toMatch(/^beyond the mean budget +cache_prior +λ 0.23/m);
  expect(stdout).toMatch(/^> +cache_prior +λ 0.2 +1 +13.1% +41.3 +\+0.50% ± 0.10 +\+0.50% ± 0.10 +\+0.50%$/m);
  expect(stdout).toMatch(/λ 0.2 +1 +16 +41.0 ± 2.5 +38.0 +12.0% +8 +the device's speed drifted$/m);
});

test('counts one as one', async () => {
  const one = explained();
  Object.assign(one.knowledge!.speed!, { windows: 1n, priorDevices: 1 });
  operator.script.explained = one;
  expect((await run('a')).stdout).toContain('from 1 window of its own and what 1 device of class phone has told');
});

test('names the routing of what was chosen, measured and run, and how far it bends in its own terms', async () => {
  const one = explained();
  const strength = 12 / 28;
  const { choice, outcomes } = one.knowledge!;
  Object.assign(choice!.chosen!, { routing: Routing.ROUTING_MAX_RANK, lambda: strength });
  Object.assign(outcomes[1]!, { routing: Routing.ROUTING_CUMULATIVE_THRESHOLD, lambda: 0.7 });
  one.device!.info!.model = { ...one.device!.info!.model!, experts: 32, topK: 4 };
  for (const { points } of one.surfaces) {
    points.push({ ...points[1]!, routing: Routing.ROUTING_MAX_RANK, lambda: strength, crossEntropyLoss: 0.004 }, { ...points[1]!, routing: Routing.ROUTING_PRUNED, lambda: 1, topJ: 2 });
  }
  operator.script.explained = one;
  const { stdout } = await run('a');
  expect(stdout).toMatch(/^chosen +max_rank +rank 16 +1 +16 +12.0%/m);
  expect(stdout).toMatch(/^beyond the mean budget +cache_prior +λ 0.23/m);
  expect(stdout).toMatch(/^> +max_rank +rank 16 +1 .*\+0.40% ± 0.10/m);
  expect(stdout).toMatch(/^ +cache_prior +λ 0.2 +1 /m);
  expect(stdout).toMatch(/^ +pruned +- +2 /m);
  expect(stdout).toMatch(/cumulative_threshold +mass 0.7 +1 +16 +41.0/);
  expect(JSON.parse((await run('a', '--json')).stdout)).toMatchObject({ chosen: { routing: 'max_rank', bend: 'rank 16', lambda: strength } });
  const file = join(folder, 'routings.svg');
  await run('a', '--svg', file);
  for (const text of ['chosen: max_rank 16 topJ 1', 'cache_prior topJ 1, mean', 'max_rank topJ 1, mean']) expect(readFileSync(file, 'utf8')).toContain(text);
});

test('tells what of its routing has drifted, layer by layer, and that λ is held back', async () => {
  const drift = DriftKnowledge.fromPartial({
    tokens: 1900, massLost: 0.0183, leastMeasured: 0.007, mostMeasured: 0.0091, causes: ['workload'], sinceMs: BigInt(Date.now() - 60_000), reason: 'tokens want other experts than before: 0.250 bits',
    workloadBits: [0.21, 0.29], lambdaBits: [0.02, 0.03], entropyChange: 0.12, windows: [{ slots: 100n, misses: 10n, swaps: 5n }],
    hold: { lambda: 0.11, factor: 2.01, mostMassLost: 0.0091, seenLambda: 0.2, seenTopJ: 1, sinceMs: BigInt(Date.now() - 60_000), untilMs: BigInt(Date.now() + 3 * 3_600_000), reason: 'lost' },
  });
  operator.script.explained = explained({ drift });
  const { stdout } = await run('a');
  expect(stdout).toMatch(/drift of routing +workload \(\d+ s ago\): tokens want other experts/);
  expect(stdout).toMatch(/mass lost +0.0183 of softmax mass per routing event, over 1900 tokens of late; 0.0070 to 0.0091 on the texts/);
  expect(stdout).toMatch(/λ HELD BACK +at 0.11 or less, \d+ s ago, for 3.0 h more: at λ 0.2 topJ 1 it lost 2.01 times .*is to be measured anew/);
  expect(stdout).toMatch(/^ *1 +0.290 +0.030$/m);
  expect(JSON.parse((await run('a', '--json')).stdout)).toMatchObject({ routing: { causes: ['workload'], workloadBits: [0.21, 0.29], windows: [{ missRate: 0.1, swapRate: 0.05 }], hold: { lambda: 0.11, measuredAnew: false } } });
});

test('says that a device is quarantined, and why', async () => {
  operator.script.explained = explained({ quarantine: { reason: 'layer 0: massLost is NaN', sinceMs: BigInt(Date.now() - 60_000), windows: 3n, sound: 0 } });
  expect((await run('a')).stdout).toMatch(/telemetry +QUARANTINED 60 s ago, 3 windows set aside: layer 0: massLost is NaN/);
});

test('says what to do where no learner has looked at the device, and that a device is unknown', async () => {
  operator.script.explained = { device: device('a'), proposal: undefined, knowledge: undefined, surfaces: [] };
  expect((await run('a')).stdout).toContain('no learner has looked at it yet; start one with `moefleet learner run`');
  operator.script.explained = null;
  expect(await run('b')).toMatchObject({ code: 1, stderr: expect.stringContaining('no device "b"; list them with: moefleet devices') });
});

test('prints everything as JSON, and draws the surface with the budget and the choice', async () => {
  operator.script.explained = explained();
  const json = JSON.parse((await run('a', '--json')).stdout) as Record<string, unknown>;
  expect(json).toMatchObject({ device: 'a', boundBy: 'mean budget', chosen: { lambda: 0.2, tokensPerSecond: 41 }, speed: { hiddenShare: 0.5 }, measured: [{ lambda: 0 }, { lambda: 0.2 }, { lambda: 0.3 }] });
  const file = join(folder, 'a.svg');
  expect((await run('a', '--svg', file)).code).toBe(0);
  const svg = readFileSync(file, 'utf8');
  expect(svg).toMatch(/^<svg/);
  for (const text of ['budget, 1.00%', 'chosen: λ 0.2 topJ 1', 'cache_prior topJ 1, mean of wiki, code']) expect(svg).toContain(text);
  expect((await run('a', '--svg', join(folder, 'no', 'such.svg'))).stderr).toMatch(/--svg: cannot write/);
  operator.script.explained = { ...explained(), surfaces: [] };
  expect((await run('a', '--svg', file)).stderr).toContain('nothing has been measured for a yet');
});
