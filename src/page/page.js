(() => {
  // The longest and the shortest pause between two questions, in seconds, and the one where nobody says.
  const longest = 300, shortest = 1, usual = 60;
  const given = document.currentScript.dataset;
  const html = document.documentElement;
  const notice = document.getElementById('notice');
  // Without a name and password, which fetch() refuses, and without the fragment.
  const address = location.origin + location.pathname;
  let shown = notice?.innerHTML, asked = Date.now(), timer;

  // Times as the visitor reads them: in their own time zone, and in their own variety of the page's language.
  const localise = () => {
    const own = navigator.languages.find(language => language.split('-')[0] === html.lang.split('-')[0]);
    const format = new Intl.DateTimeFormat(own || html.lang || [], {dateStyle: 'full', timeStyle: 'short'});
    for (const time of document.querySelectorAll('time[datetime]')) {
      const date = new Date(time.dateTime);
      if (!isNaN(date)) time.textContent = format.format(date);
    }
  };

  const wait = seconds => {
    const pause = Math.min(Math.max(seconds || +given.retryAfter || usual, shortest), longest);
    // Not all at the same time: up to a half later, by half a minute at most.
    timer = setTimeout(ask, (pause + Math.random() * Math.min(pause, 60) / 2) * 1000);
  };

  // Loads what the visitor wanted, by GET, whatever this page was the answer to: reload() could send a form again. An
  // address that differs by its fragment only would lead to a place in this page: so this one gets another before.
  const load = () => {
    const wanted = location.href;
    if (location.hash) history.replaceState(null, '', address + (location.search ? '' : '?-'));
    location.replace(wanted);
  };

  // A form that was refused is never sent again from here.
  const tell = () => {
    const status = document.getElementById('status');
    document.title = given.over;
    if (notice) {
      const heading = document.createElement('h1');
      heading.textContent = given.over;
      notice.replaceChildren(heading);
      status?.remove();
    } else (status || document.body.appendChild(document.createElement('p'))).textContent = given.over;
  };

  const ask = async () => {
    asked = Date.now();
    clearTimeout(timer);
    timer = 0;
    let seconds;
    try {
      // In a sandbox nothing may be asked, but the page can still be loaded.
      if (origin === 'null') return given.over || load();
      const answer = await fetch(address + location.search, {
        headers: {Accept: 'text/html'}, cache: 'no-store', redirect: 'manual', signal: AbortSignal.timeout?.(30000)
      });
      // Nor is whoever asks too often told about the application.
      if (answer.status < 502 && answer.status !== 429) return given.over ? tell() : load();
      seconds = parseInt(answer.headers.get('Retry-After'));
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
      const news = fresh.getElementById('notice');
      if (news && notice && news.innerHTML !== shown) {
        shown = news.innerHTML;
        notice.replaceChildren(...news.childNodes);
        document.title = fresh.title;
        localise();
      }
    } catch {}
    wait(seconds);
  };

  // Who comes back to the page need not wait.
  const look = () => document.visibilityState === 'visible' && timer && Date.now() - asked > 5000 && ask();
  document.addEventListener('visibilitychange', look);
  addEventListener('online', look);
  // The link alone would lose the fragment.
  document.querySelector('.again a')?.addEventListener('click', event => {
    if (!location.hash || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    load();
  });
  // One that is past by the visitor's clock says nothing about the next.
  wait(Math.max((Date.parse(given.until) - Date.now()) / 1000, 0));
  localise();
})();
