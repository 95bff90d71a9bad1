/** `moefleet operator`: who may use a coordinator that asks for tokens. */
import { Argument, type Command, Option } from 'commander';
import { type Operator, Role } from '@moefleet/proto';
import { durationFrom } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { enumName, type JsonValue, jsonText, toJson } from '../json-text';
import { addOperatorGroup } from '../operator-command';
import { NONE, table } from '../table';
import { ago } from './devices';

const ROLES: Readonly<Record<string, Role>> = {
  viewer: Role.ROLE_VIEWER, operator: Role.ROLE_OPERATOR, admin: Role.ROLE_ADMIN, learner: Role.ROLE_LEARNER,
};

const HELP = `
Roles:
  viewer    sees devices, rollouts and the audit log
  operator  and changes what devices run, and their labels
  admin     and gives and takes access
  learner   what moefleet learner run needs, and nothing else

A coordinator asks for tokens where TLS is on, where its operator address is beyond loopback, or with
--require-operator-token. The first admin's token is in the file that the coordinator names in its log at the first
start. Give a token with --token-file FILE or MOEFLEET_TOKEN.
`;

export function addOperators(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'operator', 'tokens of those who may use the coordinator', (group, action) => {
    const create = group.command('create').description('make a token; it is printed once and never again')
      .addArgument(new Argument('<name>', 'who it is for; the audit log says this name'))
      .addOption(new Option('--role <role>', 'what it may do').choices(Object.keys(ROLES)).makeOptionMandatory())
      .addOption(new Option('--ttl <span>', 'how long it holds, such as 8h or 30d (default: until revoked)').argParser(durationFrom(1000, 315_360_000_000)))
      .option('--why <text>', 'reason, kept in the audit log')
      .addHelpText('after', `${HELP}
Examples:
  moefleet operator create alice --role operator --ttl 30d > alice.token
  moefleet operator create learner-1 --role learner
`);
    addCommonOptions(create, { operator: true }).action(action(async ({ operator, args, options, json, out, note }) => {
      const answer = await operator.createOperator({
        name: args[0]!, role: ROLES[String(options['role'])]!, ttlMs: BigInt((options['ttl'] as number | undefined) ?? 0), why: String(options['why'] ?? ''),
      });
      if (json) return out(jsonText({ operator: answer.operator && operatorJson(answer.operator), token: answer.token }));
      out(`${answer.token}\n`);
      note(`keep it in a file that only ${args[0]!} can read; it is not shown again\n`);
    }));

    const list = group.command('list').description('operators and their roles').addHelpText('after', '\nExample:\n  moefleet operator list --json\n');
    addCommonOptions(list, { operator: true }).action(action(async ({ operator, json, out }) => {
      const operators = await operator.listOperators();
      if (json) out(jsonText({ operators: operators.map(operatorJson) }));
      else out(operators.length === 0 ? 'no operators; make one with: moefleet operator create NAME --role viewer\n' : operatorTable(operators, Date.now()));
    }));

    const revoke = group.command('revoke').description('take a token back; its next call is refused').argument('<name>', 'see: moefleet operator list')
      .option('--why <text>', 'reason, kept in the audit log')
      .addHelpText('after', '\nExample:\n  moefleet operator revoke alice --why "left the team"\n');
    addCommonOptions(revoke, { operator: true }).action(action(async ({ operator, args, options, json, out }) => {
      const revoked = await operator.revokeOperator({ name: args[0]!, why: String(options['why'] ?? '') });
      out(json ? jsonText({ operator: operatorJson(revoked) }) : `${revoked.name} is revoked\n`);
    }));
  });
}

function operatorTable(operators: readonly Operator[], nowMs: number): string {
  return table(['NAME', 'ROLE', 'STATE', 'EXPIRES', 'CREATED', 'BY'], operators.map((one) => [
    one.name, roleName(one.role), state(one, nowMs), one.expiresMs === 0n ? NONE : new Date(Number(one.expiresMs)).toISOString(),
    ago(nowMs - Number(one.createdMs)), one.createdBy,
  ]));
}

function state(one: Operator, nowMs: number): string {
  if (one.revokedMs > 0n) return 'revoked';
  return one.expiresMs > 0n && nowMs >= Number(one.expiresMs) ? 'expired' : 'in force';
}

function operatorJson(one: Operator): JsonValue {
  return toJson({ ...one, role: roleName(one.role), state: state(one, Date.now()) });
}

function roleName(role: Role): string {
  return enumName(Role, 'ROLE_', role).toLowerCase();
}
