import * as proto from '@moefleet/proto';
import type { ServiceDefinition } from '@grpc/grpc-js';
import { isListed, mayCall, roleNeeded } from './role-table';

/** Those that agents' streams reach, on another port and with certificates. */
const OF_THE_GATEWAY = ['AgentServiceService', 'ArtifactServiceService', 'EnrolmentServiceService'];

const methods = Object.entries(proto)
  .filter(([name]) => /^[A-Z]\w*ServiceService$/.test(name) && !OF_THE_GATEWAY.includes(name))
  .flatMap(([, service]) => Object.values(service as unknown as ServiceDefinition).map(({ path }) => path));

test('finds the services it has to look at', () => {
  expect(methods).toEqual(expect.arrayContaining(['/moefleet.v1.OperatorService/ChangeConfig', '/moefleet.v1.AccessService/ReadAudit']));
});

test.each(methods)('%s has a role of its own', (path) => expect(isListed(path)).toBe(true));

test('what is not listed is for admins alone, whatever it is called', () => {
  for (const path of ['/moefleet.v1.OperatorService/Unheard', '', 'constructor', '__proto__']) expect(roleNeeded(path)).toBe('admin');
});

test('a higher role may what a lower one may, a learner only what is a learner\'s', () => {
  const allowed = (['viewer', 'operator', 'admin', 'learner', 'public'] as const).map((need) => (['viewer', 'operator', 'admin', 'learner'] as const).filter((role) => mayCall(role, need)));
  expect(allowed).toEqual([['viewer', 'operator', 'admin'], ['operator', 'admin'], ['admin'], ['admin', 'learner'], ['viewer', 'operator', 'admin', 'learner']]);
});
