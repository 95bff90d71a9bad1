import { explainSsh } from './ssh-failure';

const target = { id: 'board', host: 'board', user: 'pi' };

test.each([
  ['Host key verification failed.', /host key is not known here/, /ssh-keyscan board/],
  ['@@@@@@@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.', /another host key than it did before/, /ssh-keygen -R board/],
  ['pi@board: Permission denied (publickey,password).', /refuses the login/, /ssh-copy-id pi@board/],
  ['ssh: Could not resolve hostname board: Name or service not known', /name is not known/, /check the name/],
  ['ssh: connect to host board port 22: Connection refused', /nothing listens/, /systemctl enable --now ssh/],
  ['ssh: connect to host board port 22: Connection timed out', /cannot be reached/, /ping board/],
  ['command-line: line 0: Bad configuration option: foo', /Bad configuration option/, /--ssh-option/],
  ['something nobody has seen', /something nobody has seen/, /ssh pi@board true/],
  ['', /ssh ended with code 255/, /ssh pi@board true/],
])('%j is told with its remedy', (said, message, remedy) => {
  const error = explainSsh(target, said, 255);
  expect(error.message).toMatch(message);
  expect(error.remedy).toMatch(remedy);
});

test('a port is named where it is needed', () => {
  expect(explainSsh({ ...target, port: 2222 }, 'REMOTE HOST IDENTIFICATION HAS CHANGED', 255).remedy).toContain('ssh-keygen -R \'[board]:2222\'');
});
