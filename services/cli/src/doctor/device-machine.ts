/** A device as its own probe sees it, over ssh or where this runs. */
import { type DeviceFacts } from '../deploy/device-facts';
import { checkDevice, speed } from '../deploy/device-check';
import { formatSize } from '@moefleet/runtime';
import { type Check, Checks } from './check';

export function checkDeviceMachine(subject: string, facts: DeviceFacts, nowMs: number): Check[] {
  const checks = new Checks(subject);
  for (const { severity, check, found, remedy } of checkDevice(facts, { prefixBytes: 0, stateBytes: 0 }, nowMs)) {
    checks.add(severity === 'stop' ? 'broken' : severity, check, found, remedy);
  }
  checks.add('ok', 'system', `${facts.board || facts.arch}, ${facts.distribution}, kernel ${facts.kernel}, glibc ${facts.glibc ?? 'none'}, ${facts.cores} cores`);
  checks.add('ok', 'memory', `${formatSize(facts.memoryBytes)}, ${formatSize(facts.availableBytes)} available`);
  checks.add('ok', 'disk', `${formatSize(facts.stateFreeBytes)} free at ${facts.state}`);
  if (facts.flashBytesPerSecond !== null) checks.add('ok', 'flash', `${speed(facts.flashBytesPerSecond)} of direct reads`);
  const { installed } = facts;
  if (installed.bundleSha256 === '') checks.add('note', 'agent', 'not deployed', 'moefleet deploy ssh user@host --model FILE --coordinator HOST:7400');
  else if (!installed.running) checks.add('broken', 'agent', 'deployed, and not running', facts.systemd === null ? `${facts.prefix}/launcher.sh start; see ${facts.state}/agent.log` : 'systemctl restart moefleet-agent; see journalctl -u moefleet-agent');
  else checks.add('ok', 'agent', `runs${installed.enrolled ? ', enrolled' : ''}`);
  return checks.all;
}
