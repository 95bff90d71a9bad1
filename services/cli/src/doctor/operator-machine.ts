/** What this machine has of what an operator needs: programs, bundles, the fleet's CA, a coordinator that answers. */
import { spawnSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as zlib from 'node:zlib';
import { formatDuration } from '@moefleet/runtime';
import { findBundle } from '../deploy/cargo-file';
import { older } from '../deploy/device-check';
import type { OperatorConnection } from '../operator-connection';
import { type Check, Checks } from './check';
import { checkCoordinators, checkDeviceRecord } from './fleet-checks';

const LEAST_NODE = '20.11';
const MONTH_MS = 30 * 24 * 3_600_000;
/** An answer of Redis and back that takes longer is felt at every command. */
const SLOW_ANSWER_MS = 500;

/** `repository`: its root folder. */
export function checkThisMachine(repository: string, caFile: string, nowMs: number): Check[] {
  const checks = new Checks('this machine');
  const node = process.versions.node;
  if (older(node, LEAST_NODE)) checks.add('broken', 'Node.js', `${node}, needed is ${LEAST_NODE}`, 'install a newer one from your distribution or nodejs.org');
  else checks.add('ok', 'Node.js', node);
  const ssh = spawnSync('ssh', ['-V'], { encoding: 'utf8' });
  if (ssh.status === 0) checks.add('ok', 'ssh', ssh.stderr.trim().split(',')[0]!);
  else checks.add('broken', 'ssh', 'missing: moefleet deploy ssh needs it', 'apt-get install openssh-client');
  if ('createZstdDecompress' in zlib || spawnSync('zstd', ['--version']).status === 0) checks.add('ok', 'zstd', 'there');
  else checks.add('note', 'zstd', 'missing: this Node.js reads no bundles without (moefleet deploy, agent push)', 'apt-get install zstd');
  if (existsSync(join(repository, 'edge-agent', 'native', 'build', 'moefleet_engine.node'))) checks.add('ok', 'engine', 'built');
  else checks.add('note', 'engine', 'not built: moefleet engine and model need it', './dev build');
  const bundles = (['x64', 'arm64'] as const).map((arch) => ({ arch, found: findBundle(join(repository, 'dist-bundle'), arch) }));
  for (const { arch, found } of bundles) {
    if (found) checks.add('ok', 'bundle', `linux-${arch} ${found.version}`);
    else checks.add('note', 'bundle', `none for linux-${arch}`, `npm run bundle -- --arch ${arch}`);
  }
  if (caFile !== '') checkCa(checks, caFile, nowMs);
  return checks.all;
}

/** The CA's certificate in `file`, which may be anything. */
export function checkCa(checks: Checks, file: string, nowMs: number): void {
  try {
    const untilMs = Date.parse(new X509Certificate(readFileSync(file)).validTo);
    if (untilMs <= nowMs) checks.add('broken', 'fleet\'s CA', `${file} ran out ${formatDuration(nowMs - untilMs)} ago`, 'make a fleet anew (moefleet fleet init) and enrol its devices');
    else checks.add(untilMs - nowMs < MONTH_MS ? 'slow' : 'ok', 'fleet\'s CA', `${file}, until ${new Date(untilMs).toISOString().slice(0, 10)}`, untilMs - nowMs < MONTH_MS ? 'plan a new fleet folder before that day (moefleet fleet init)' : '');
  } catch (error) {
    checks.add('broken', 'fleet\'s CA', `${file} cannot be read: ${(error as Error).message}`, 'copy ca.pem from the folder that moefleet fleet init made, and name it with --ca');
  }
}

/** Devices that are in good order are counted, not told one by one. `deviceId`: that one alone, with all of its checks. */
export async function checkFleet(operator: OperatorConnection, address: string, deviceId: string | undefined, nowMs: () => number): Promise<Check[]> {
  const checks = new Checks(`coordinator ${address}`);
  const began = nowMs();
  try {
    const coordinators = deviceId === undefined ? await operator.listCoordinators() : [];
    const devices = deviceId === undefined ? await operator.listDevices() : [await operator.getDevice(deviceId)];
    const tookMs = nowMs() - began;
    checks.add(tookMs > SLOW_ANSWER_MS ? 'slow' : 'ok', 'answers', `in ${tookMs} ms`, tookMs > SLOW_ANSWER_MS ? 'on its machine: moefleet doctor --coordinator' : '');
    const found = devices.map((device) => ({ id: device.id, all: checkDeviceRecord(device, nowMs()) }));
    if (deviceId !== undefined) return [...checks.all, ...found.flatMap(({ all }) => all)];
    const good = found.filter(({ all }) => all.every(({ state }) => state === 'ok'));
    if (devices.length === 0) checks.add('note', 'devices', 'none yet', 'moefleet deploy ssh user@host --model FILE --coordinator HOST:7400');
    else checks.add('ok', 'devices', `${good.length} of ${devices.length} in good order`);
    return [...checks.all, ...checkCoordinators(coordinators, nowMs()), ...found.filter(({ all }) => all.some(({ state }) => state !== 'ok')).flatMap(({ all }) => all.filter(({ state }) => state !== 'ok'))];
  } catch (error) {
    checks.add('broken', 'answers', (error as Error).message, deviceId === undefined ? 'start it (moefleet coordinator run), or name it with --operator, --ca and --token-file; on its machine: moefleet doctor --coordinator' : 'moefleet devices');
    return checks.all;
  }
}
