import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { DeviceSpec, EffectiveSpec, Eviction, type Proposal, type Rollout, Routing, RolloutDevice_State as State, Rollout_State } from '@moefleet/proto';
import { until } from '../../../../test/harness/ports';
import { type Captured, runCaptured } from '../testing/run-captured';
import { device, ScriptedOperator } from '../testing/scripted-operator';

let operator: ScriptedOperator;
const run = (args: string[], signal?: AbortSignal): Promise<Captured> => runCaptured(args, { MOEFLEET_OPERATOR: operator.address }, signal);

beforeEach(async () => {
  operator = new ScriptedOperator();
  await operator.start();
});
afterEach(() => operator.stop());

function rollout(...states: [id: string, state: State, reason?: string][]): Rollout {
  return {
    id: 'r1', what: 'lambda 0.25', origin: 'operator', createdMs: 1n, state: Rollout_State.STATE_DONE,
    devices: states.map(([deviceId, state, reason]) => ({ deviceId, state, generation: 4n, reason: reason ?? '' })),
  };
}

describe('devices', () => {
  test('lists what each runs, and how far it is from what it should', async () => {
    operator.script.devices = [
      device('b', { drift: true, desired: { ...device('b').desired!, lambda: 0.4 } }),
      device('a', { online: false, telemetry: undefined }),
    ];
    const { code, stdout } = await run(['devices']);
    expect(code).toBe(0);
    const [head, a, b] = stdout.split('\n');
    expect(head).toMatch(/^ID +ONLINE +λ +CAPACITY +MISS +TOKENS\/S +MODEL +DRIFT +SEEN$/);
    expect(a).toMatch(/^a +no +0.25 +16 +- +- +tinymoe +no +\d+ days ago$/);
    expect(b).toMatch(/^b +yes +0.4 > 0.25 +16 +25.0% +10.0 +tinymoe +yes +now$/);
  });

  test('prints JSON with numbers for 64-bit integers, hex for bytes and names for states', async () => {
    operator.script.devices = [device('a')];
    const { devices } = JSON.parse((await run(['devices', 'list', '--json'])).stdout) as { devices: Record<string, unknown>[] };
    expect(devices).toHaveLength(1);
    expect(devices[0]).toMatchObject({
      id: 'a', desiredGeneration: 3, desiredHash: '00ff', missRate: 0.25, tokensPerSecond: 10,
      desired: { lambda: 0.25, capacities: [16, 16], cacheBytes: null, routing: 'cache_prior' },
      reported: { state: 'APPLIED', appliedGeneration: 3, effective: { lambda: 0.25 } },
      sources: [{ field: 'lambda', layer: 'FLEET_PIN' }],
      info: { model: { status: 'READY' } },
    });
  });

  test('keeps a 64-bit integer exact that no number can hold', async () => {
    operator.script.devices = [device('a', { desiredGeneration: 2n ** 60n + 1n })];
    expect(JSON.parse((await run(['devices', 'show', 'a', '--json'])).stdout)).toMatchObject({ device: { desiredGeneration: '1152921504606846977' } });
  });

  test('sends the selector', async () => {
    const { stdout } = await run(['devices', 'list', '--selector', 'class=phone,site=berlin']);
    expect(operator.listed[0]!.selector).toEqual({ matchLabels: { class: 'phone', site: 'berlin' }, expression: '' });
    expect(stdout).toContain('no device matches class=phone,site=berlin');
    await run(['devices', 'list', '--selector', 'gpu, region in (us,eu)']);
    expect(operator.listed[1]!.selector).toEqual({ matchLabels: {}, expression: 'gpu,region in (eu,us)' });
    const refused = await run(['devices', 'list', '--selector', 'region in eu']);
    expect(refused).toMatchObject({ code: 2, stderr: expect.stringMatching(/--selector: "region in eu" is no selector: at character 11: expected "\(", found "eu"/) as string });
  });

  test('shows where each value comes from, what was adjusted and why, and the layers', async () => {
    const shown = device('a');
    shown.reported!.adjustments = [{ field: 'lambda', asked: '0.9', effective: '0.25', reason: 'own limit' }];
    operator.script.devices = [shown];
    const { stdout } = await run(['devices', 'show', 'a']);
    expect(stdout).toMatch(/lambda +0.25 +0.25 +fleet pin/);
    expect(stdout).toMatch(/lambda +0.9 +0.25 +own limit/);
    expect(stdout).toMatch(/1 +0 +0 +10 +6 +37.5%/);
  });

  test('shows the routing and the eviction in force with what they read, and the method for λ where it has none', async () => {
    const method = { routing: Routing.ROUTING_MAX_RANK, maxRank: 8, topJs: [2, 1], biasPrefill: true, eviction: Eviction.EVICTION_LFU, evictionHalfLifeTokens: 64 };
    const shown = device('a', { desired: DeviceSpec.fromPartial(method) });
    shown.reported!.effective = EffectiveSpec.fromPartial(method);
    operator.script.devices = [shown];
    const { stdout } = await run(['devices', 'show', 'a']);
    expect(stdout).toMatch(/routing +max_rank, max rank 8, prompts included +max_rank, max rank 8, prompts included/);
    expect(stdout).toMatch(/eviction +lfu, half-life 64 tokens +lfu, half-life 64 tokens/);
    expect(stdout).toMatch(/top_j +2,1 +2,1/);
    expect((await run(['devices'])).stdout).toMatch(/^a +yes +max_rank +/m);
    expect(JSON.parse((await run(['devices', 'show', 'a', '--json'])).stdout)).toMatchObject({
      device: { desired: { routing: 'max_rank', maxRank: 8, eviction: 'lfu' }, reported: { effective: { routing: 'max_rank', eviction: 'lfu', topJs: [2, 1] } } },
    });
  });

  test('names the next step for an id nobody has', async () => {
    expect(await run(['devices', 'show', 'ghost'])).toEqual({ code: 1, stdout: '', stderr: 'moefleet: no device "ghost"; list them with: moefleet devices\n' });
  });
});

describe('lambda set', () => {
  test('sends what was asked and exits with 0 when all have applied it', async () => {
    operator.script.rollouts = [rollout(['b', State.STATE_PENDING]), rollout(['b', State.STATE_APPLIED], ['a', State.STATE_UNCHANGED])];
    const { code, stdout, stderr } = await run(['lambda', 'set', '0.25', '--all', '--top-j', '1', '--why', 'trial', '--timeout', '5']);
    expect(operator.changes[0]).toEqual({
      target: { kind: { $case: 'all', value: true } }, change: { $case: 'setLambda', value: { lambda: 0.25, topJ: 1 } }, why: 'trial', timeoutMs: 5000, stageMany: true,
    });
    expect(stdout).toMatch(/^DEVICE +STATE +GENERATION +WHY\na +UNCHANGED +4\nb +APPLIED +4\n$/);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  });

  test.each([
    [3, [['a', State.STATE_APPLIED], ['b', State.STATE_OFFLINE]], /^b: OFFLINE: it gets the change when it comes back\n$/],
    [3, [['b', State.STATE_OFFLINE, 'not connected; it gets the change when it comes back']], /^b: OFFLINE: not connected; it gets the change when it comes back\n$/],
    [1, [['a', State.STATE_FAILED, 'no memory'], ['b', State.STATE_OFFLINE]], /a: FAILED: no memory.*\nb: OFFLINE/],
    [1, [['a', State.STATE_APPLYING]], /a: APPLYING: no answer in time/],
    [1, [['a', State.STATE_SUPERSEDED]], /a: SUPERSEDED by a newer change/],
  ] as [number, [string, State, string?][], RegExp][])('exits with %d for %j and names every device that did not apply it', async (code, states, said) => {
    operator.script.rollouts = [rollout(...states)];
    const result = await run(['lambda', 'set', '0.25', '--all', '--json']);
    expect(result.code).toBe(code);
    expect(result.stderr).toMatch(said);
    const json = JSON.parse(result.stdout) as { notApplied: string[]; rollout: { devices: { state: string }[] } };
    expect(json.notApplied).toEqual(states.filter(([, state]) => state !== State.STATE_APPLIED).map(([id]) => id));
    expect(json.rollout.devices).toHaveLength(states.length);
  });

  test('leaves topJ to the device where it is not given, and λ 0 is sent as 0', async () => {
    operator.script.rollouts = [rollout()];
    const { code, stdout } = await run(['lambda', 'set', '0', '--selector', 'class=phone']);
    expect(operator.changes[0]!.change).toEqual({ $case: 'setLambda', value: { lambda: 0, topJ: undefined } });
    expect(stdout).toContain('no device matches yet');
    expect(code).toBe(0);
  });

  test('sends for how long it holds, and tells until when; what hands back cannot end', async () => {
    operator.script.rollouts = [{ ...rollout(['a', State.STATE_APPLIED]), what: 'lambda 0.2 on all devices until 2026-01-01T00:00:00.000Z' }];
    expect(await run(['lambda', 'set', '0.2', '--all', '--for', '2h'])).toMatchObject({ code: 0, stderr: 'lambda 0.2 on all devices until 2026-01-01T00:00:00.000Z\n' });
    expect(operator.changes[0]!.expiresInMs).toBe(7_200_000n);
    expect(await run(['lambda', 'set', '0.2', '--all', '--for', 'ever'])).toMatchObject({ code: 2, stderr: expect.stringMatching(/--for.*'ever'.*such as 90s, 2h or 7d/) as string });
    expect(await run(['lambda', 'auto', '--all', '--for', '2h'])).toMatchObject({ code: 2, stderr: expect.stringMatching(/unknown option '--for'/) as string });
    expect(operator.changes).toHaveLength(1);
  });

  test('passes on why the coordinator refused', async () => {
    operator.script.fails = { code: status.INVALID_ARGUMENT, details: 'target.device_id: "a b" is not an id' };
    expect(await run(['lambda', 'set', '0.1', '--device', 'a b'])).toEqual({ code: 2, stdout: '', stderr: 'moefleet: target.device_id: "a b" is not an id\n' });
  });

  test('does not blame the network where the coordinator answers that Redis is away', async () => {
    operator.script.fails = { code: status.UNAVAILABLE, details: 'redis is away; try again' };
    expect((await run(['lambda', 'set', '0.1', '--all'])).stderr).toBe('moefleet: redis is away; try again\n');
  });

  test('cancels the call and exits with 130 on Ctrl-C', async () => {
    operator.script.hang = true;
    const interrupt = new AbortController();
    const running = run(['lambda', 'set', '0.1', '--all', '--json'], interrupt.signal);
    await until('the call has arrived', () => operator.changes.length === 1);
    interrupt.abort();
    expect(await running).toEqual({ code: 130, stdout: '', stderr: '' });
    await until('the server sees it cancelled', () => operator.cancelledStreams === 1);
  });
});

test.each([
  [['lambda', 'auto'], { $case: 'clearLambda', value: {} }],
  [['lambda', 'set', '0.1,0.2', '--top-j', '1'], { $case: 'setRouting', value: { routing: Routing.ROUTING_CACHE_PRIOR, lambda: undefined, lambdas: [0.1, 0.2], topJ: 1 } }],
  [['routing', 'set', 'max_rank', '--max-rank', '8', '--top-j', '2,1'], { $case: 'setRouting', value: { routing: Routing.ROUTING_MAX_RANK, maxRank: 8, topJ: undefined, topJs: [2, 1], biasPrefill: undefined } }],
  [['routing', 'set', 'cache_prior', '--lambda', '0.3', '--bias-prefill', '--first-biased-layer', '1'], { $case: 'setRouting', value: { lambda: 0.3, lambdas: [], biasPrefill: true, firstBiasedLayer: 1 } }],
  [['routing', 'auto'], { $case: 'clearLambda', value: {} }],
  [['eviction', 'set', 'lfu', '--half-life', '64'], { $case: 'setEviction', value: { eviction: Eviction.EVICTION_LFU, halfLifeTokens: 64 } }],
  [['eviction', 'auto'], { $case: 'clearEviction', value: {} }],
  [['cache', 'auto'], { $case: 'clearCache', value: {} }],
  [['cache', 'set', '1.5MiB'], { $case: 'setCache', value: { size: { $case: 'cacheBytes', value: 1572864n } } }],
  [['cache', 'set', '--capacity', '12'], { $case: 'setCache', value: { size: { $case: 'capacity', value: 12 } } }],
  [['tracing', 'set', '0.5'], { $case: 'setTracing', value: { traceRatio: 0.5 } }],
  [['windows', 'off'], { $case: 'setRouterSampling', value: { sampling: undefined } }],
  [['windows', 'on', '--tokens', '32'], { $case: 'setRouterSampling', value: { sampling: { windowTokens: 32, bytesPerHour: 1048576n, bytesPerDay: 16777216n } } }],
])('%j changes what it says', async (args, change) => {
  operator.script.rollouts = [rollout(['a', State.STATE_APPLIED])];
  expect((await run([...args, '--device', 'a'])).code).toBe(0);
  expect(operator.changes[0]).toMatchObject({ target: { kind: { $case: 'deviceId', value: 'a' } }, change });
});

describe('measure', () => {
  let folder: string;
  beforeEach(() => { folder = mkdtempSync(join(tmpdir(), 'moefleet-cli-')); });
  afterEach(() => rmSync(folder, { recursive: true }));

  test('sends prompts and text, and derives rates from what the device counted', async () => {
    writeFileSync(join(folder, 'p'), 'from a file');
    writeFileSync(join(folder, 't'), 'a text');
    operator.script.measured = [
      { state: { $case: 'progress', value: { fraction: 0.5, what: 'generating' } } },
      { state: { $case: 'result', value: {
        spec: EffectiveSpec.fromPartial({ lambda: 0.3, topJ: 2, routing: 2, capacities: [8, 8], cacheBytes: 1000n, traceRatio: 1 }), generation: 5n,
        decodeTokens: 100n, decodeNs: 4_000_000_000n, hits: 75n, misses: 25n, swaps: 10n, flashBytes: 3000n, prefillMisses: 4n,
        prefillFlashBytes: 1000n, crossEntropy: 3.01, crossEntropyLambdaZero: 3, textTokens: 512, windowCrossEntropy: [], windowCrossEntropyLambdaZero: [],
      } } },
    ];
    const { code, stdout } = await run(['measure', 'a', '--prompts', join(folder, 'p'), '--prompt', 'inline', '--tokens', '50', '--text', join(folder, 't'), '--text-tokens', '512', '--json']);
    expect(code).toBe(0);
    expect(operator.measures[0]).toEqual({ deviceId: 'a', measure: { prompts: ['from a file', 'inline'], tokensPerPrompt: 50, text: 'a text', textTokens: 512, context: 256, temperature: 0, seed: 0 } });
    const measured = JSON.parse(stdout) as { crossEntropyLoss: number };
    expect(measured).toMatchObject({ spec: { lambda: 0.3, routing: 'cache_prior' }, missRate: 0.25, tokensPerSecond: 25, flashBytesPerToken: 20 });
    expect(measured.crossEntropyLoss).toBeCloseTo(0.01, 10);
  });

  test('has no figure where there was no text', async () => {
    operator.script.measured = [{ state: { $case: 'result', value: {
      spec: undefined, generation: 0n, decodeTokens: 0n, decodeNs: 0n, hits: 0n, misses: 0n, swaps: 0n, flashBytes: 0n, prefillMisses: 0n,
      prefillFlashBytes: 0n, crossEntropy: undefined, crossEntropyLambdaZero: undefined, textTokens: 0, windowCrossEntropy: [], windowCrossEntropyLambdaZero: [] } } }];
    expect(JSON.parse((await run(['measure', 'a', '--prompt', 'x', '--json'])).stdout)).toMatchObject({ missRate: null, tokensPerSecond: null, crossEntropyLoss: null });
  });

  test('tells a device that is offline from a coordinator that is', async () => {
    operator.script.fails = { code: status.UNAVAILABLE, details: 'device a is offline' };
    expect(await run(['measure', 'a', '--prompt', 'x'])).toEqual({ code: 1, stdout: '', stderr: 'moefleet: device a is offline\n' });
  });
});

describe('trace', () => {
  test('prints the address alone', async () => {
    operator.script.devices = [device('a', { traceUrl: 'http://jaeger/trace/1' })];
    expect(await run(['trace', 'a'])).toEqual({ code: 0, stdout: 'http://jaeger/trace/1\n', stderr: '' });
    expect(JSON.parse((await run(['trace', 'a', '--json'])).stdout)).toMatchObject({ id: 'a', url: 'http://jaeger/trace/1' });
  });

  test('says what to do where there is none', async () => {
    operator.script.devices = [device('a')];
    const { code, stdout, stderr } = await run(['trace', 'a', '--json']);
    expect(stderr).toMatch(/^moefleet: a: no trace yet; .*\n$/);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  });
});

describe('learner', () => {
  test('queues a run', async () => {
    expect(JSON.parse((await run(['learner', 'now', '--json'])).stdout)).toEqual({ jobId: 'job-7' });
    expect(operator.learnerRuns).toBe(1);
  });

  test('shows what is proposed and why', async () => {
    const proposal: Proposal = {
      deviceId: 'a', modelHash: 'abc', lambda: 0.3, topJ: 2, capacities: [16, 16], predictedMissRate: 0.1, predictedCrossEntropyLoss: 0.005,
      baselineMissRate: 0.3, reason: 'bound by the budget', proposed: true, timeMs: BigInt(Date.now()), textHash: 'def',
      routing: Routing.ROUTING_CACHE_PRIOR, maxRank: undefined, massThreshold: undefined,
    };
    const ranked: Proposal = { ...proposal, deviceId: 'c', routing: Routing.ROUTING_MAX_RANK, lambda: 0, maxRank: 12 };
    operator.script.learner = { activity: 'measuring', proposals: [proposal, { ...proposal, deviceId: 'b', proposed: false, reason: 'other model' }, ranked] };
    const { stdout } = await run(['learner', 'show']);
    expect(stdout).toMatch(/now: measuring/);
    expect(stdout).toMatch(/a +λ 0.3 +2 +16 +30.0% +10.0% +0.50% +\d s ago +bound by the budget/);
    expect(stdout).toMatch(/b +- +- +- .*other model/);
    expect(stdout).toMatch(/^c +max_rank 12 +2 +16/m);
    expect(JSON.parse((await run(['learner', 'show', '--json'])).stdout)).toMatchObject({ activity: 'measuring', proposals: [{ deviceId: 'a', routing: 'cache_prior', timeMs: expect.any(Number) as number }, {}, { routing: 'max_rank', maxRank: 12 }] });
  });
});
