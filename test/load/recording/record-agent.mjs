/**
 * Records what a real agent says about itself while it serves: starts one on the reference model, plays the coordinator
 * for it, asks it for completions, and writes its DeviceInfo and telemetry frames. Needs a build; about a minute.
 *
 *   node test/load/recording/record-agent.mjs > test/load/recording/agent.recording.json
 */
import { createRequire } from 'node:module';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

const root = join(import.meta.dirname, '..', '..', '..');
const require = createRequire(join(root, 'coordinator', 'package.json'));
const { Server, ServerCredentials } = require('@grpc/grpc-js');
const { AgentServiceService, DeviceInfo, DeviceSpec, TelemetryFrame } = require('@moefleet/proto');

const INTERVAL_MS = 1000;
const FRAMES = 40;
/** λ as an operator would set it, so that the recording has swaps and mass lost; its second half is under another. */
const SPECS = [{ lambda: 0.2, topJ: 1 }, { lambda: 0.3, topJ: 2 }];
const PROMPTS = ['The river rises in the hills and', 'Question: A shop sells 12 apples a day.', 'def main():\n    return', 'The committee said on Monday that'];

const folder = mkdtempSync(join(tmpdir(), 'moefleet-record-'));
const recording = { what: 'a real agent on tinymoe-17m-q8_0 with 7.2 MiB of cache, serving completions', intervalMs: INTERVAL_MS, info: '', frames: [] };
let complete;
const done = new Promise((resolve) => { complete = resolve; });

const base64 = (type, message) => Buffer.from(type.encode(message).finish()).toString('base64');
const spec = (fields) => Buffer.from(DeviceSpec.encode(DeviceSpec.fromPartial(fields)).finish());

const server = new Server();
server.addService(AgentServiceService, {
  connect(call) {
    const desire = (generation) => call.write({ body: { $case: 'desired', value: { generation: BigInt(generation), spec: spec(SPECS[generation - 1]), origin: 'recording' } } });
    call.on('data', ({ body }) => {
      if (body?.$case === 'hello') {
        call.write({ body: { $case: 'welcome', value: { coordinatorId: 'recorder', protocolVersion: 1, telemetryIntervalMs: INTERVAL_MS } } });
        desire(1);
      }
      if (body?.$case === 'info') recording.info = base64(DeviceInfo, { ...body.value, os: 'Linux', hostname: 'hollow', httpUrl: 'http://127.0.0.1:1' });
      if (body?.$case !== 'telemetry' || body.value.decodeTokens === 0n) return;
      recording.frames.push(base64(TelemetryFrame, body.value));
      process.stderr.write(`frame ${recording.frames.length} of ${FRAMES}\n`);
      if (recording.frames.length === FRAMES / 2) desire(2);
      if (recording.frames.length === FRAMES) complete();
    });
    call.on('error', () => {});
  },
});
const port = await new Promise((resolve, reject) => server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))));
const agent = spawn(process.execPath, [
  join(root, 'services', 'cli', 'bin', 'moefleet.js'), 'agent', 'run', '--id', 'recorded', '--model', join(root, 'test', 'fixtures', 'tinymoe-17m-q8_0.gguf'),
  '--max-cache', '7.2MiB', '--coordinator', `127.0.0.1:${port}`, '--state-dir', folder, '--http', '127.0.0.1:0', '--threads', '1', '--otlp-endpoint', '',
  '--labels', 'class=hollow', '--memory-pressure', 'off',
], { stdio: ['ignore', 'ignore', 'pipe'] });
const ended = new Promise((resolve) => agent.once('exit', resolve));
let serving = true;
try {
  const httpUrl = await new Promise((resolve, reject) => {
    createInterface({ input: agent.stderr }).on('line', (line) => {
      if (line.includes('"listening"')) resolve(JSON.parse(line).httpUrl);
    });
    ended.then((code) => reject(new Error(`the agent ended with ${code}`)));
  });
  const serve = async () => {
    for (let turn = 0; serving; turn += 1) {
      const response = await fetch(`${httpUrl}/v1/completions`, {
        method: 'POST', headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'default', prompt: PROMPTS[turn % PROMPTS.length], max_tokens: 24, temperature: 0.8, seed: turn }),
      }).catch(() => null);
      if (response) await response.text();
      // An app pauses between requests; an agent that is still loading answers with an error at once.
      await new Promise((resolve) => setTimeout(resolve, response?.ok ? 300 : 1000));
    }
  };
  const server = serve();
  await done;
  serving = false;
  await server;
} finally {
  serving = false;
  agent.kill('SIGTERM');
  await ended;
  server.forceShutdown();
  rmSync(folder, { recursive: true, force: true });
}
process.stdout.write(`${JSON.stringify(recording, null, 1)}\n`);
