// Widgets go where the page has a place for them.
const WIDGETS = { gallery, matrix, map, confusion, charts };
document.querySelectorAll("[data-widget]").forEach((mount) => WIDGETS[mount.dataset.widget](mount));
document.getElementById("theme").addEventListener("click", () => setTheme(!isDark()));

const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  entries.filter((e) => e.isIntersecting).forEach((e) => {
    links.forEach((a, id) => a.classList.toggle("here", id === e.target.id));
    const link = links.get(e.target.id), bar = link.parentElement;
    bar.scrollTo({ left: link.offsetLeft - bar.clientWidth / 2 + link.clientWidth / 2, behavior: "smooth" });
  });
}, { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
document.body.dataset.ready = "yes";
