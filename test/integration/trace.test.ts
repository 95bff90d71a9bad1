import { countDistinct, queryTraces } from '../../services/demo/src/jaeger';
import { TestFleet, complete, jaegerOrSkip } from '../harness/test-fleet';
import { until } from '../harness/ports';
import type { RunningAgent } from '../../services/demo/src/local-fleet';
import type { Child } from '../../services/demo/src/child-process';

const binary = jaegerOrSkip();
const withJaeger = binary ? test : test.skip;
let fleet: TestFleet;
let agent: RunningAgent;
let jaeger: Child;

beforeAll(async () => {
  if (!binary) return;
  fleet = await new TestFleet().start({ jaeger: true });
  jaeger = await fleet.fleet.startJaeger(binary);
  agent = await fleet.agent('phone-1', { maxCache: '3.6MiB' });
});
afterAll(() => fleet?.stop());

async function engineMisses(): Promise<number> {
  const metrics = await (await fetch(`${agent.httpUrl}/metrics`)).text();
  const lines = [...metrics.matchAll(/^moefleet_agent_misses_total(?:\{[^}]*\})? (\d+)/gm)];
  return lines.reduce((sum, match) => sum + Number(match[1]), 0);
}

async function spansInJaeger(traceIds: string[], expected: number): Promise<number> {
  const { queryUrl } = fleet.fleet.jaeger!;
  let seen = 0;
  await until('every miss is in Jaeger', async () => {
    seen = countDistinct(await queryTraces(queryUrl, traceIds), 'flash.read');
    return seen >= expected;
  }, 60_000, 250);
  return seen;
}

withJaeger('each miss of a request of 96 tokens is one flash.read span in Jaeger', async () => {
  const before = await engineMisses();
  const answer = await complete(agent.httpUrl, { tokens: 96, cold: true });
  expect(answer.completionTokens).toBeGreaterThanOrEqual(64);
  expect(answer.misses).toBeGreaterThan(0);
  expect((await engineMisses()) - before).toBe(answer.misses);
  expect(await spansInJaeger(answer.traceIds, answer.misses)).toBe(answer.misses);

  const spans = await queryTraces(fleet.fleet.jaeger!.queryUrl, answer.traceIds);
  const missNumbers = spans.filter((span) => span.name === 'flash.read').map((span) => span.attributes['moefleet.miss_number']);
  expect(new Set(missNumbers).size).toBe(answer.misses);
  expect(spans.every((span) => span.attributes['moefleet.request.id'] === answer.requestId)).toBe(true);
  const { url } = await until('the coordinator knows the trace', () => fleet.cli<{ url: string }>('trace', 'phone-1').catch(() => null));
  expect(url).toContain(fleet.fleet.jaeger!.queryUrl);
});

withJaeger('a new lambda takes effect at the next token of a generation that runs already', async () => {
  await fleet.cli('lambda', 'set', '0', '--all');
  const response = await fetch(`${agent.httpUrl}/v1/completions`, {
    method: 'POST', headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'default', prompt: 'The river', max_tokens: 480, temperature: 0.9, seed: 7, stream: true }),
  });
  const reader = response.body!.getReader();
  const decoder = new TextDecoder();
  let stream = decoder.decode((await reader.read()).value);
  await fleet.cli('lambda', 'set', '0.3', '--all');
  for (let chunk = await reader.read(); !chunk.done; chunk = await reader.read()) stream += decoder.decode(chunk.value);
  const account = JSON.parse(/"moefleet":(\{[^}]*\})/.exec(stream)![1]!) as { misses: number; trace_ids: string[] };
  expect(await spansInJaeger(account.trace_ids, account.misses)).toBe(account.misses);

  const spans = await queryTraces(fleet.fleet.jaeger!.queryUrl, account.trace_ids);
  const lambdas = spans.filter((span) => span.name === 'flash.read')
    .map((span) => ({ miss: Number(span.attributes['moefleet.miss_number']), lambda: Number(span.attributes['moefleet.lambda']) }))
    .sort((a, b) => a.miss - b.miss).map((read) => read.lambda);
  const change = lambdas.indexOf(0.3);
  expect(change).toBeGreaterThan(0);
  expect(lambdas.slice(0, change).every((lambda) => lambda === 0)).toBe(true);
  expect(lambdas.slice(change).every((lambda) => lambda === 0.3)).toBe(true);
  await fleet.cli('lambda', 'auto', '--all');
});

withJaeger('a request served while Jaeger is away arrives whole when it is back', async () => {
  await jaeger.stop();
  const answer = await complete(agent.httpUrl, { tokens: 96, cold: true });
  const away = await until('telemetry shows what is spooled', async () => {
    const { telemetry } = await fleet.device('phone-1');
    return telemetry && telemetry.misses.spooled >= answer.misses ? telemetry.misses : null;
  });
  expect(away.counted).toBe(away.exported + away.spooled + away.dropped + away.unsampled);
  jaeger = await fleet.fleet.startJaeger(binary!);
  expect(await spansInJaeger(answer.traceIds, answer.misses)).toBe(answer.misses);
  const back = await until('the spool is empty', async () => {
    const { telemetry } = await fleet.device('phone-1');
    return telemetry && telemetry.misses.spooled === 0 ? telemetry.misses : null;
  });
  expect(back.dropped).toBe(0);
  expect(back.counted).toBe(back.exported + back.unsampled);
});

withJaeger('the account holds across a kill of the agent: what was spooled is exported later', async () => {
  await jaeger.stop();
  const answer = await complete(agent.httpUrl, { tokens: 64, cold: true });
  agent.child.signal('SIGKILL');
  await until('it has ended', () => agent.child.ended);
  jaeger = await fleet.fleet.startJaeger(binary!);
  agent = await fleet.agent('phone-1', { maxCache: '3.6MiB' });
  expect(await spansInJaeger(answer.traceIds, answer.misses)).toBe(answer.misses);
});
