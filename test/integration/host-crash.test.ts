import { engineHostPid } from '../harness/engine-host-pid';
import { TestFleet, complete } from '../harness/test-fleet';
import { until } from '../harness/ports';
import type { RunningAgent } from '../../services/demo/src/local-fleet';

let fleet: TestFleet;
let agent: RunningAgent;

beforeAll(async () => {
  fleet = await new TestFleet().start();
  agent = await fleet.agent('phone-1', { maxCache: '3.6MiB' });
  await fleet.online('phone-1');
});
afterAll(() => fleet?.stop());

test.each(['SIGABRT', 'SIGSEGV', 'SIGKILL'] as const)('an engine that ends by %s fails its request, not the agent', async (signal) => {
  const before = (await fleet.device('phone-1')).info!.model.hostCrashes;
  const response = fetch(`${agent.httpUrl}/v1/completions`, {
    method: 'POST', headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'default', prompt: 'The river', max_tokens: 240, temperature: 0, stream: true }),
  });
  const reader = (await response).body!.getReader();
  await reader.read();
  process.kill(engineHostPid(agent.child.pid!), signal);
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true, value: undefined }));
    if (done) break;
    rest += new TextDecoder().decode(value);
  }
  expect(rest).toMatch(/error/);
  await until('it serves again', async () => (await complete(agent.httpUrl, { tokens: 4 })).completionTokens === 4);
  const device = await until('the crash is reported', async () => {
    const seen = await fleet.device('phone-1');
    return seen.info!.model.hostCrashes > before ? seen : null;
  });
  expect(device.online).toBe(true);
  expect(agent.child.ended).toBe(false);
});
