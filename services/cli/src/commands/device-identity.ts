/** `moefleet device revoke`, `unrevoke`, `release`, `remove`, `clear-clone` and `identities`: who may be in the fleet. */
import type { Command } from 'commander';
import type { DeviceIdentity } from '@moefleet/proto';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import type { OperatorConnection } from '../operator-connection';
import { addOperatorGroup } from '../operator-command';
import { NONE, table } from '../table';

type Change = (operator: OperatorConnection, request: { deviceId: string; why: string }) => Promise<{ identity: DeviceIdentity | undefined }>;

export function addDeviceIdentity(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'device', 'who may be in the fleet, device by device', (device, action) => {
    const change = (name: string, description: string, example: string, make: Change) => {
      const command = device.command(name).description(description).argument('<id>', 'device id').option('--why <text>', 'reason, kept in the audit log', '')
        .addHelpText('after', `\nExample:\n  moefleet device ${name} ${example}\n`);
      addCommonOptions(command, { operator: true }).action(action(async ({ operator, json, args, options, out }) => {
        const { identity } = await make(operator, { deviceId: args[0]!, why: String(options['why']) });
        out(json ? jsonText({ identity }) : identityTable(identity ? [identity] : []));
      }));
    };
    change('revoke', 'cut its stream and let it in no more', 'phone-1 --why "lost on a train"', (operator, request) => operator.unary(operator.identity.revokeDevice.bind(operator.identity), request));
    change('unrevoke', 'let it in again', 'phone-1 --why found', (operator, request) => operator.unary(operator.identity.unrevokeDevice.bind(operator.identity), request));
    change('release', 'give its id free: the next installation that enrols under it gets it, the present one is cut off', 'phone-1 --why "new SD card"',
      (operator, request) => operator.unary(operator.identity.releaseDevice.bind(operator.identity), request));
    change('remove', 'forget it: its certificate is refused, its id free, its record, pins, labels and windows go', 'phone-1 --why scrapped',
      (operator, request) => operator.unary(operator.identity.removeDevice.bind(operator.identity), request));
    change('clear-clone', 'take the mark from a device that was found to run twice, after one of the two has gone', 'phone-1 --why "second card destroyed"',
      (operator, request) => operator.unary(operator.identity.clearClone.bind(operator.identity), request));

    const list = device.command('identities').description('installation, key, certificate and marks of each device').argument('[id]', 'of one device')
      .addHelpText('after', '\nExample:\n  moefleet device identities --json\n');
    addCommonOptions(list, { operator: true }).action(action(async ({ operator, json, args, out }) => {
      const { identities } = await operator.unary(operator.identity.listDeviceIdentities.bind(operator.identity), { deviceId: args[0] ?? '' });
      if (json) out(jsonText({ identities }));
      else out(identities.length === 0 ? 'nobody has enrolled; see: moefleet token create --help\n' : identityTable(identities));
    }));
  });
}

function identityTable(identities: readonly DeviceIdentity[]): string {
  return table(['ID', 'INSTALLATION', 'KEY', 'CERTIFICATE UNTIL', 'STATE'], identities.map((one) => [
    one.deviceId, one.installId || NONE, one.keyHash.slice(0, 16) || NONE, one.notAfterMs ? new Date(Number(one.notAfterMs)).toISOString() : NONE, stateText(one),
  ]));
}

function stateText({ keyHash, revokedMs, revokedWhy, releasedMs, clonedMs, clones }: DeviceIdentity): string {
  const states = [];
  if (revokedMs) states.push(`revoked${revokedWhy ? ` (${revokedWhy})` : ''}`);
  if (clonedMs) states.push(`CLONED: seen on ${clones.map(({ hostname, peer }) => `${hostname} (${peer})`).join(' and ')}`);
  if (releasedMs) states.push('released');
  return states.join('; ') || (keyHash ? 'enrolled' : 'not enrolled');
}
