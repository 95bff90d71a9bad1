/**
 * A site that downloads once: devices in network namespaces of their own on one bridge, each with a certificate of one fleet, fetch a
 * model at the same time. Counts what the coordinator's blob server sends, and compares it with the model's size. This program names
 * the devices to each other as a coordinator does.
 *
 * Root and iproute2; `npx tsc -b` before. Room for all the copies.
 *
 *   --devices 20
 *   --mib 500           size of the model
 *   --chunk-mib 1       of its chunks
 *   --rate 1gbit        of each device's link, as tc takes it
 *   --folder DIR        for the copies (default: the system's temporary folder)
 *   --json
 */
import { execFileSync, spawn } from 'node:child_process';
import { webcrypto } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { readFlags, root } from '../shared.mjs';
import { makeModel, MIB, sha256 } from './made-model.mjs';

const require = createRequire(import.meta.url);
const { FleetCa } = require(join(root, 'coordinator', 'dist', 'identity', 'fleet-ca.js'));
const x509 = require('@peculiar/x509');
const flags = readFlags({
  devices: { type: 'string', default: '20' }, mib: { type: 'string', default: '500' }, 'chunk-mib': { type: 'string', default: '1' }, rate: { type: 'string', default: '1gbit' },
  folder: { type: 'string', default: tmpdir() }, json: { type: 'boolean', default: false },
});
const here = new URL('.', import.meta.url).pathname;
const work = mkdtempSync(join(flags.folder, 'moefleet-site-'));
const prefix = `ms${process.pid % 1e5}`;
const names = Array.from({ length: Number(flags.devices) }, (_, i) => `device-${i + 1}`);
const run = (program, ...args) => execFileSync(program, args, { stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8' });
const inside = (namespace, ...command) => run('nsenter', `--net=/run/netns/${namespace}`, ...command);
const namespaces = [];

/** `number` 0: the coordinator's place. */
function addHost(number) {
  const namespace = `${prefix}n${number}`;
  run('ip', 'netns', 'add', namespace);
  namespaces.push(namespace);
  const lan = namespaces[0];
  run('ip', 'link', 'add', `port${number}`, 'netns', lan, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace);
  inside(lan, 'ip', 'link', 'set', `port${number}`, 'master', 'lan', 'up');
  inside(namespace, 'ip', 'addr', 'add', `10.78.0.${number + 1}/24`, 'dev', 'eth0');
  for (const link of ['lo', 'eth0']) inside(namespace, 'ip', 'link', 'set', link, 'up');
  inside(namespace, 'tc', 'qdisc', 'add', 'dev', 'eth0', 'root', 'tbf', 'rate', flags.rate, 'burst', '1mb', 'latency', '400ms');
  return namespace;
}

async function certify(ca, name, serves) {
  const keys = await webcrypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify']);
  const lifeMs = 24 * 3_600_000;
  const issued = serves ? await ca.issueServer(keys.publicKey, ['10.78.0.1'], Date.now(), lifeMs)
    : await ca.issueDevice(await x509.PublicKey.create(keys.publicKey, webcrypto), name, 'bench', Date.now(), lifeMs);
  const folder = join(work, `tls-${name}`);
  mkdirSync(folder);
  writeFileSync(join(folder, 'key.pem'), x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY'));
  writeFileSync(join(folder, 'cert.pem'), issued.chainPem);
  writeFileSync(join(folder, 'ca.pem'), ca.certificatePem);
  return folder;
}

function start(namespace, script, ...args) {
  const child = spawn('nsenter', [`--net=/run/netns/${namespace}`, process.execPath, join(here, script), ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
  return { child, lines: createInterface({ input: child.stdout }) };
}

const model = makeModel(join(work, 'blobs'), Number(flags.mib) * MIB, Number(flags['chunk-mib']) * MIB);
const children = [];
try {
  run('ip', 'netns', 'add', `${prefix}lan`);
  namespaces.push(`${prefix}lan`);
  inside(namespaces[0], 'ip', 'link', 'add', 'lan', 'type', 'bridge');
  inside(namespaces[0], 'ip', 'link', 'set', 'lan', 'up');
  const ca = await FleetCa.create(join(work, 'fleet'), { name: 'bench', hosts: [] }, Date.now());
  const server = start(addHost(0), 'blob-host.mjs', model.folder, '10.78.0.1', await certify(ca, 'coordinator', true));
  children.push(server.child);
  const answers = server.lines[Symbol.asyncIterator]();
  const { port } = JSON.parse((await answers.next()).value);

  const devices = new Map();
  const tellAll = () => {
    for (const [name, { child }] of devices) {
      const others = [...devices].filter(([other, { holding }]) => other !== name && holding?.port > 0);
      child.stdin.write(`${JSON.stringify(others.map(([other, { holding }]) => ({ deviceId: other, address: `${holding.networks[0].split('/')[0]}:${holding.port}`, whole: holding.whole })))}\n`);
    }
  };
  const began = Date.now();
  const seconds = () => (Date.now() - began) / 1000;
  const ends = [];
  for (const [i, name] of names.entries()) {
    const namespace = addHost(i + 1);
    const { child, lines } = start(namespace, 'site-device.mjs', name, join(work, name), model.id, String(model.bytes), `10.78.0.1:${port}`, await certify(ca, name, false));
    children.push(child);
    const device = { child, holding: null, came: null };
    devices.set(name, device);
    ends.push(new Promise((resolve, reject) => {
      lines.on('line', (line) => {
        const said = JSON.parse(line);
        if (said.holding) {
          device.holding = said.holding;
          tellAll();
        } else if (said.whole) {
          device.came = { ...said, seconds: seconds() };
          process.stderr.write(`${seconds().toFixed(0)} s: ${name} has it, ${(said.coordinator / MIB).toFixed(0)} MiB of it from the coordinator\n`);
          resolve();
        } else if (said.warning) process.stderr.write(`${seconds().toFixed(0)} s: ${name}: ${line}\n`);
        else device.progress = said;
      });
      child.once('close', (code) => reject(new Error(`${name} ended with ${code}`)));
    }));
  }
  const reports = setInterval(() => {
    const done = [...devices.values()].map(({ came, progress }) => (came ? model.bytes : progress?.done ?? 0));
    process.stderr.write(`${seconds().toFixed(0)} s: ${(done.reduce((sum, one) => sum + one, 0) / MIB).toFixed(0)} MiB in all, the least ${(Math.min(...done) / MIB).toFixed(0)}\n`);
  }, 15_000);
  await Promise.all(ends);
  clearInterval(reports);
  server.child.stdin.write('\n');
  const { bytesSent } = JSON.parse((await answers.next()).value);
  const whole = names.filter((name) => sha256(readFileSync(join(work, name, `${model.id}.gguf`))).toString('hex') === model.fileSha256).length;
  const result = { devices: names.length, whole, modelMib: model.bytes / MIB, coordinatorMib: bytesSent / MIB, times: bytesSent / model.bytes, seconds: seconds(), each: Object.fromEntries([...devices].map(([name, { came }]) => [name, came])) };
  console.log(flags.json ? JSON.stringify(result) : `${whole} of ${names.length} devices have the model of ${flags.mib} MiB, whole and verified, after ${result.seconds.toFixed(0)} s; the coordinator sent ${result.coordinatorMib.toFixed(0)} MiB, ${result.times.toFixed(2)} times its size`);
  process.exitCode = whole === names.length && result.times <= 2 ? 0 : 1;
} finally {
  for (const child of children) child.removeAllListeners('close').kill('SIGKILL');
  for (const one of namespaces) execFileSync('ip', ['netns', 'del', one]);
  rmSync(work, { recursive: true, force: true });
}
